"""What may become an update: exactly what is broken is skipped, and nothing that is only noisy."""

import math

import numpy as np
import pytest
import torch

from ludus.learning.guard import GROW_EVERY, HIGHEST_SCALE, Guard
from ludus.learning.guard_settings import SpikeSettings

STEPS = 10_000


def stream(seed: int, *, noise: float = 0.05, tails: float = 5.0, floor: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Return losses and gradient norms of a clean run: falling, noisier for small batches, with heavy tails.

    The noise of the loss is Student's t, that of the norm its exponential; both wander, and rates warm up.
    """
    draw = np.random.default_rng(seed)
    steps = np.arange(STEPS)
    trend = floor + 3.0 / (1 + steps / 150) + 2.0 * np.exp(-steps / 40)
    wander = np.convolve(draw.standard_normal(STEPS + 99), np.ones(100) / 100, "valid") * noise * 5
    losses = trend + wander + noise * draw.standard_t(tails, STEPS)
    warm = 0.3 + np.minimum(steps / 200, 1.0) * 0.5 + 3.0 * np.exp(-steps / 30)
    norms = warm * np.exp(0.25 * draw.standard_t(8, STEPS) + wander)
    return losses.astype(np.float32), norms.astype(np.float32)


def judge_all(guard: Guard, losses: np.ndarray, norms: np.ndarray) -> list[int]:
    """Return the steps that are skipped."""
    pairs = zip(torch.from_numpy(losses), torch.from_numpy(norms), strict=True)
    skips = torch.stack([guard.judge(loss, norm) for loss, norm in pairs])
    return skips.nonzero().flatten().tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ten_thousand_clean_steps_are_all_accepted(seed):
    guard = Guard()
    assert judge_all(guard, *stream(seed)) == []
    assert int(guard.skips) == 0


@pytest.mark.parametrize(("seed", "kinds"), [(0, "both"), (1, "loss"), (2, "norm")])
def test_fifty_broken_batches_and_twenty_spikes_are_seventy_skips(seed, kinds):
    losses, norms = stream(seed)
    draw = np.random.default_rng(seed)
    chosen = draw.choice(np.arange(200, STEPS), 70, replace=False)
    broken, spikes = chosen[:50], chosen[50:]
    losses[broken[:20]] = np.nan
    norms[broken[10:40]] = np.nan
    norms[broken[40:]] = np.inf
    if kinds in ("both", "loss"):
        losses[spikes] *= 10
    if kinds in ("both", "norm"):
        norms[spikes] *= 30
    guard = Guard()
    assert judge_all(guard, losses, norms) == sorted(chosen.tolist())
    assert int(guard.skips) == 70


def test_what_is_skipped_never_becomes_the_measure():
    guard = Guard()
    for _ in range(200):
        guard.judge(2.0, 0.5)
    before = {name: value.clone() for name, value in guard.state_dict().items() if isinstance(value, torch.Tensor)}
    for loss, norm in [(math.nan, 0.5), (2.0, math.inf), (40.0, 0.5), (2.0, 90.0)] * 50:
        assert bool(guard.judge(loss, norm))
    after = guard.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in ("window", "usual", "limits"))
    assert int(guard.skipped_in_a_row) == int(guard.skips) == 200
    assert not bool(guard.judge(2.1, 0.6))
    assert (int(guard.skipped_in_a_row), int(guard.skips)) == (0, 200)


@pytest.mark.parametrize(
    ("loss", "norm", "verdict"),
    [
        (2.0, 0.5, "ok"),
        (0.1, 0.001, "ok"),
        (-3.0, 0.0, "ok"),
        (math.nan, 0.5, "non-finite"),
        (-math.inf, 0.5, "non-finite"),
        (2.0, math.inf, "non-finite"),
        (9.0, 0.5, "spike"),
        (2.0, 50.0, "spike"),
    ],
)
def test_the_verdict_says_what_was_wrong(loss, norm, verdict):
    guard = Guard()
    for step in range(128):
        guard.judge(2.0 + 0.01 * (step % 7), torch.tensor(0.5 + 0.01 * (step % 5)))
    assert bool(guard.judge(loss, norm)) is (verdict != "ok")
    assert guard.verdict() == verdict
    assert guard.usual() == (pytest.approx(2.03), pytest.approx(0.52))


def test_before_there_is_a_measure_only_what_is_no_number_is_skipped():
    guard = Guard(spike=SpikeSettings(window=32, warmup=24))
    for step in range(23):
        assert not bool(guard.judge(2.0 if step % 2 else 200.0, 1.0))
        assert bool(guard.judge(math.nan, 1.0))
    guard.forget()
    for _ in range(24):
        guard.judge(2.0, 1.0)
    assert bool(guard.judge(200.0, 1.0))
    guard.forget()
    assert not bool(guard.judge(200.0, 1.0))


def test_a_guard_told_not_to_judge_spikes_lets_them_pass():
    guard = Guard(spike=SpikeSettings(judge=False))
    for _ in range(200):
        guard.judge(2.0, 0.5)
    assert not bool(guard.judge(2000.0, 500.0))
    assert bool(guard.judge(math.nan, 500.0))


def test_gradients_of_zero_do_not_make_the_others_spikes():
    guard = Guard()
    for step in range(500):
        assert not bool(guard.judge(0.0, 0.3 if step % 3 == 0 else 0.0))


def test_a_guard_goes_on_from_its_state_bit_for_bit():
    losses, norms = stream(3)
    losses[[205, 211, 300]] = [math.nan, 99.0, 99.0]
    whole, first = Guard(), Guard()
    expected = judge_all(whole, losses[:400], norms[:400])
    assert expected == [205, 211, 300]
    judge_all(first, losses[:213], norms[:213])
    again = Guard()
    again.load_state_dict(first.state_dict())
    assert judge_all(again, losses[213:400], norms[213:400]) == [300 - 213]
    for name, value in whole.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(again.state_dict()[name])), name


def test_another_window_begins_anew_and_keeps_the_count():
    first, again = Guard(), Guard(spike=SpikeSettings(window=64))
    for loss in (2.0, math.nan, math.nan):
        first.judge(loss, 1.0)
    again.load_state_dict(first.state_dict())
    assert int(again.skips) == int(again.skipped_in_a_row) == 2
    assert not bool(again.judge(2.0, 1.0))


def test_float16_finds_its_scale_and_that_is_no_event():
    guard, largest = Guard(scaling=True), 1000.0  # a gradient scaled beyond it overflows
    verdicts = []
    for _ in range(10):
        norm = 1.0 if float(guard.scale) <= largest else math.inf
        skip = bool(guard.judge(2.0, norm))
        verdicts.append(guard.verdict())
        assert skip is (verdicts[-1] != "ok")
    assert verdicts == ["overflow"] * 7 + ["ok"] * 3
    assert float(guard.scale) == HIGHEST_SCALE / 2**7 == 512
    assert int(guard.skips) == int(guard.skipped_in_a_row) == 0
    for _ in range(GROW_EVERY - 3):
        guard.judge(2.0, 1.0)
    assert float(guard.scale) == 1024
    again = Guard(scaling=True)
    again.load_state_dict(guard.state_dict())
    assert float(again.scale) == 1024
    for bad in (torch.tensor(math.nan), 2.0):
        guard.judge(bad, math.nan)
    assert float(guard.scale) == 512  # a loss that is no number is not the scale's fault
    assert (guard.verdict(), int(guard.skips)) == ("overflow", 1)


def test_an_overflow_at_the_least_scale_is_an_event():
    guard = Guard(scaling=True)
    for _ in range(16):
        guard.judge(2.0, math.inf)
    assert (guard.verdict(), int(guard.skips), float(guard.scale)) == ("overflow", 0, 1.0)
    guard.judge(2.0, math.inf)
    assert (guard.verdict(), int(guard.skips), float(guard.scale)) == ("non-finite", 1, 1.0)


def test_without_scaling_the_loss_is_taken_as_it_is():
    assert Guard().scale == 1.0
