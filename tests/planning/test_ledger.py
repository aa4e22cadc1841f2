"""The ledger counts what is there: the same with and without content, by part, in straight lines."""

import pytest
import torch

from ludus.learning.objectives.next_token import next_token
from ludus.model.cost import num_parameters
from ludus.optim.settings import AdamWSettings, MuonSettings
from ludus.planning import ledger
from ludus.planning.work import Work


@pytest.fixture
def work(shape):
    return Work(shape(), rows=3, context=24, accumulate=1, steps=10, precision="float32", optimizer=AdamWSettings())


def test_weights_gradients_and_moments_are_counted_to_the_byte(work):
    found = ledger.measure(work.with_(rows=1, context=8))
    weights = 4 * num_parameters(work.shape)
    assert found.parts[ledger.WEIGHTS] == weights
    state = {name: size for name, size in found.parts.items() if name.startswith(ledger.STATE)}
    assert state["optimizer: exp avg"] == state["optimizer: exp avg sq"] == weights
    assert weights * 3 <= found.standing <= weights * 3 + 4096  # and a count a parameter


@pytest.mark.parametrize(
    ("optimizer", "precision", "changes"),
    [
        (AdamWSettings(), "float32", {}),
        (MuonSettings(), "bfloat16", {"packed": False}),
        (MuonSettings(), "bfloat16", {"accumulate": 2, "recompute": True}),
    ],
)
def test_tensors_without_content_take_what_real_ones_take(work, optimizer, precision, changes):
    work = work.with_(optimizer=optimizer, precision=precision, **changes)
    fake, real = ledger._walk(work), ledger._walk(work, fake=False)
    assert fake.peak == pytest.approx(real.peak, rel=0.02)
    assert fake.standing == real.standing


def test_what_the_forward_pass_keeps_is_what_autograd_saves(work):
    model = ledger.dress(ledger.Transformer(work.shape), work)
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    alive = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (alive.append(keep(t)), t)[1], lambda t: t):
        next_token(model, ledger.batch(work))["loss"]
    assert ledger.measure(work).saved == pytest.approx(sum(saved.values()), rel=0.1)


def test_more_rows_take_more_in_a_straight_line(work):
    one, two, three = (ledger.measure(work.with_(rows=rows)).peak for rows in (8, 16, 24))
    assert three - two == pytest.approx(two - one, rel=0.02)


def test_recomputation_saves_and_gradients_wait_between_micro_batches(work):
    plain = ledger.measure(work.with_(rows=16))
    assert ledger.measure(work.with_(rows=16, recompute=True)).peak < 0.8 * plain.peak
    assert ledger.measure(work.with_(rows=16, accumulate=3)).parts[ledger.GRADIENTS] == plain.parts[ledger.WEIGHTS]


def test_a_deep_model_is_extended_from_a_shallow_one(work, monkeypatch, shape):
    deep = work.with_(shape=shape(layers=6), rows=4)
    whole = ledger._extended(deep)
    monkeypatch.setattr(ledger, "MOST_LAYERS", 4)
    assert ledger._extended(deep).peak == pytest.approx(whole.peak, rel=0.01)


def test_code_that_needs_content_is_counted_on_small_sizes(work, monkeypatch):
    whole = ledger.measure(work)

    def fail(*given: object) -> None:
        raise RuntimeError("this needs content")

    monkeypatch.setattr(ledger, "_extended", fail)
    assert ledger.measure.__wrapped__(work).peak == pytest.approx(whole.peak, rel=0.1)
