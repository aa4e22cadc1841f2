"""The intervals are the published ones, keep their coverage, and never contradict the verdict."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ludus.base.errors import DataError
from ludus.evaluation.statistics import compare, mcnemar, tango, wilson


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_reproduces_the_table_of_newcombe_1998(correct, total, low, high):
    assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("gained", "lost", "total", "low", "high", "p"),
    [
        # Fagerland, Lydersen and Laake, chapter 8: airway hyper-responsiveness, complete response to therapy.
        (1, 7, 21, -0.517, -0.026, 0.0703),
        (6, 16, 161, -0.1240, -0.0054, 0.052479),
    ],
)
def test_paired_interval_and_exact_p_are_the_published_ones(gained, lost, total, low, high, p):
    digits = 5e-4 if total == 21 else 5e-5
    assert tango(gained, lost, total) == pytest.approx((low, high), abs=digits)
    assert mcnemar(gained, lost) == pytest.approx(p, abs=5e-5)


counts = st.integers(1, 400).flatmap(
    lambda total: st.integers(0, total).flatmap(
        lambda gained: st.tuples(st.just(gained), st.integers(0, total - gained), st.just(total))
    )
)


@given(st.integers(0, 500), st.integers(0, 500), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_holds_the_observed_share_and_stays_possible(correct, wrong, confidence):
    total = correct + wrong
    low, high = wilson(correct, total, confidence)
    assert 0 <= low < high <= 1
    if total:
        assert low - 1e-12 <= correct / total <= high + 1e-12
        mirrored = wilson(wrong, total, confidence)
        assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(counts)
def test_paired_interval_holds_the_difference_and_turns_round_with_the_models(case):
    gained, lost, total = case
    low, high = tango(gained, lost, total)
    assert -1 <= low <= (gained - lost) / total <= high <= 1
    assert high - low > 0
    assert tango(lost, gained, total) == pytest.approx((-high, -low), abs=1e-9)


@given(counts)
def test_verdict_interval_and_mcnemar_agree(case):
    gained, lost, total = case
    low, high = tango(gained, lost, total)
    z = (gained - lost) / math.sqrt(gained + lost) if gained + lost else 0.0
    if abs(abs(z) - 1.959964) > 1e-6:
        assert (low > 0) == (z > 1.959964)
        assert (high < 0) == (z < -1.959964)
    if mcnemar(gained, lost) < 0.05:
        assert low > 0 or high < 0  # the exact test is the stricter one


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.randoms())
def test_comparison_depends_on_the_pairs_and_not_on_their_order(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert compare(*zip(*pairs, strict=True)) == compare(*zip(*shuffled, strict=True))


def test_more_questions_of_the_same_kind_narrow_the_interval():
    widths = [np.diff(tango(6 * times, 3 * times, 40 * times))[0] for times in (1, 4, 16)]
    assert widths[0] > 1.8 * widths[1] > 3.2 * widths[2]


def test_verdicts_say_what_happened():
    wrong, right = [False] * 50, [True] * 50
    assert compare(wrong, right).verdict == "improved"
    assert compare(right, wrong).verdict == "degraded"
    assert compare(right, right).verdict == "within noise"
    one_better = [True, *[False] * 49]
    assert compare(wrong, one_better).verdict == "within noise"
    assert compare(wrong, one_better).difference == pytest.approx(0.02)


def test_pairing_sees_an_improvement_that_separate_intervals_miss():
    before = np.arange(200) % 2 == 0
    after = before.copy()
    after[1:21:2] = True  # ten questions gained, none lost
    assert compare(before, after).verdict == "improved"
    assert wilson(int(before.sum()), 200)[1] > wilson(int(after.sum()), 200)[0]


def test_exact_p_is_the_sum_over_the_binomial():
    for gained, lost in [(0, 5), (3, 9), (10, 10), (1, 0), (40, 22)]:
        few, many = sorted((gained, lost))
        tail = sum(math.comb(few + many, k) for k in range(few + 1)) / 2 ** (few + many)
        assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail), rel=1e-12)
    assert mcnemar(0, 0) == 1.0
    assert 0 <= mcnemar(9_000, 8_000) < 1e-10


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_wilson_covers_the_truth_about_95_times_in_100(share):
    total = 100
    hit = np.array([low <= share <= high for low, high in (wilson(k, total) for k in range(total + 1))])
    drawn = np.random.default_rng(7).binomial(total, share, size=20_000)
    assert 0.93 < hit[drawn].mean() < 0.985


@pytest.mark.parametrize(
    ("gain", "loss"), [(0.05, 0.05), (0.2, 0.05), (0.5, 0.02), (0.02, 0.0), (0.3, 0.3), (0.78, 0.0)]
)
def test_paired_interval_covers_the_truth_about_95_times_in_100(gain, loss):
    total, rounds = 200, 1500
    rng = np.random.default_rng(11)
    drawn = rng.multinomial(total, [gain, loss, 1 - gain - loss], size=rounds)
    intervals = {pair: tango(*pair, total) for pair in {(int(g), int(s)) for g, s, _ in drawn}}
    covered = [intervals[int(g), int(s)][0] <= gain - loss <= intervals[int(g), int(s)][1] for g, s, _ in drawn]
    assert 0.935 < np.mean(covered) < 0.985


def test_noise_is_called_a_change_at_most_about_5_times_in_100():
    """Exact enumeration over every table of n questions, for many shares of disagreement."""
    for total in (20, 50, 100):
        disagreements = np.arange(total + 1)
        false_alarm = np.zeros(total + 1)
        for d in range(1, total + 1):
            split = np.array([math.comb(d, k) for k in range(d + 1)], dtype=float) / 2.0**d
            z = (2 * np.arange(d + 1) - d) / math.sqrt(d)
            false_alarm[d] = split[np.abs(z) > 1.959964].sum()
        choose = np.array([float(math.comb(total, int(d))) for d in disagreements])
        for share in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8):
            weight = choose * share**disagreements * (1 - share) ** (total - disagreements)
            assert weight @ false_alarm < 0.055


def test_impossible_counts_are_refused_in_one_line():
    for call in (
        lambda: wilson(3, 2),
        lambda: wilson(-1, 2),
        lambda: wilson(1, 2, confidence=95),
        lambda: compare([True], [True, False]),
        lambda: compare([], []),
        lambda: tango(3, 3, 5),
    ):
        with pytest.raises(DataError) as error:
            call()
        assert "\n" not in str(error.value)
