"""The chunked head against the plain one: same values, same gradients, whatever the size of a chunk."""

import pytest
import torch

from ludus.model import head
from ludus.model.head import target_logps


def drawn(rows: int = 37, channels: int = 8, vocabulary: int = 50) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, channels, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(vocabulary, channels, dtype=torch.float64, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (rows,), generator=generator)


@pytest.mark.parametrize("entries", [1, 50 * 7, 1 << 20])
def test_chunks_change_neither_values_nor_gradients(monkeypatch, entries):
    monkeypatch.setattr(head, "CHUNK_ENTRIES", entries)
    hidden, weight, targets = drawn()
    upstream = torch.linspace(-1, 1, len(targets), dtype=torch.float64)
    logps, entropies = target_logps(hidden, weight, targets, precision=torch.float32, entropy=True)
    found = torch.autograd.grad((logps * upstream).sum(), (hidden, weight))
    plain = (hidden @ weight.T).log_softmax(dim=-1)
    expected = torch.autograd.grad((plain.gather(1, targets[:, None])[:, 0] * upstream).sum(), (hidden, weight))
    torch.testing.assert_close(logps, plain.gather(1, targets[:, None])[:, 0])
    torch.testing.assert_close(entropies, -(plain.exp() * plain).sum(dim=-1))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_rows_have_no_gradient():
    hidden, weight, targets = drawn(rows=0)
    logps, _ = target_logps(hidden, weight, targets, precision=torch.float32)
    logps.sum().backward()
    assert not weight.grad.any()


def test_gradients_are_those_of_finite_differences():
    hidden, weight, targets = drawn(rows=5, channels=3, vocabulary=7)
    assert torch.autograd.gradcheck(
        lambda h, w: target_logps(h, w, targets, precision=torch.float32)[0], (hidden, weight)
    )
