"""DoRA's lengths of rows by expansion: how exact they are, and when they are worked out anew."""

import pytest
import torch
from torch import nn

from ludus.adapters import dora as module
from ludus.adapters.dora import Dora, dora
from ludus.adapters.lowrank import row_norms
from ludus.adapters.settings import DoraSettings
from ludus.adapters.surgery import adapters, merge

ROW = torch.arange(40).view(2, 20)


def drawn(*sizes: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("change", [1e-4, 1e-2, 1.0, 30.0])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_expansion_gives_the_lengths_of_the_rows(change: float, stored: torch.dtype):
    weight = drawn(40, 64, scale=0.05).to(stored).float()
    A, B = drawn(4, 64, scale=0.1, seed=1), drawn(40, 4, scale=change, seed=2)
    exact = (weight.double() + B.double() @ A.double()).norm(dim=1)
    found = row_norms(weight, weight.square().sum(dim=1), A, B)
    torch.testing.assert_close(found.double(), exact, rtol=2e-6, atol=0)
    if change < 1e-3 and stored == torch.bfloat16:  # what the expansion in bfloat16 would give, and the change is gone
        narrow = row_norms(weight.bfloat16(), None, A.bfloat16(), B.bfloat16()).double()
        assert (narrow / exact - 1).abs().max() > 1e-3


def test_rows_that_cancel_lose_digits_and_no_more():
    """Half the digits at worst: the squares of float32 are wrong in the seventh, the root halves that."""
    A, B = drawn(4, 64, seed=1), drawn(40, 4, seed=2)
    weight = -(B @ A) * (1 - 1e-3)
    found, exact = row_norms(weight, None, A, B), (weight.double() + B.double() @ A.double()).norm(dim=1)
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), exact, rtol=0.5, atol=0)
    assert row_norms(-(B @ A), None, A, B).isfinite().all()


def test_a_row_of_zeros_stays_one_and_hurts_nobody():
    base = nn.Linear(12, 6, bias=False).requires_grad_(False)
    base.weight[2] = 0
    made = Dora(base, DoraSettings(rank=2), torch.Generator().manual_seed(0))
    for tokens in (2, 64):
        x = torch.randn(1, tokens, 12, requires_grad=True)
        out = made(x)
        assert (out[..., 2] == 0).all()
        out.sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in made.parameters() if parameter.requires_grad)
    assert torch.equal(made.merged()[2], torch.zeros(12))


def test_it_is_the_identity_until_it_learns_and_merges_to_what_it_says(tiny):
    before = tiny()(ROW)
    model = dora(tiny(), DoraSettings(rank=4), seed=0)
    torch.testing.assert_close(model(ROW), before, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for _, adapter in adapters(model):
            adapter.lora_B.weight.add_(drawn(*adapter.lora_B.weight.shape, scale=0.3))
            adapter.lora_magnitude_vector.mul_(1.3)
    after = model(ROW)
    assert not torch.allclose(after, before, atol=0.1)
    torch.testing.assert_close(merge(model)(ROW), after, rtol=1e-4, atol=1e-4)


def test_lengths_are_worked_out_once_for_factors_that_stay(tiny, monkeypatch):
    model = dora(tiny(), DoraSettings(rank=4), seed=0)
    calls = []
    monkeypatch.setattr(module, "row_norms", lambda *values: calls.append(1) or row_norms(*values))
    token = ROW[:1, :1]
    with torch.no_grad():
        for _ in range(3):
            model(token)
        assert len(calls) == len(list(adapters(model)))
        said = model(token)
        for _, adapter in adapters(model):
            adapter.lora_B.weight.add_(0.1)
        assert not torch.equal(model(token), said)
    assert len(calls) == 2 * len(list(adapters(model)))


def test_lengths_worked_out_while_drawing_serve_a_training_step(tiny):
    model = dora(tiny(), DoraSettings(rank=2, dropout=0.5), seed=0).train()
    tokens = torch.arange(12).view(2, 6)
    with torch.inference_mode():
        model(tokens)
    model(tokens).sum().backward()
    assert all(one.grad is not None for one in model.parameters() if one.requires_grad)
