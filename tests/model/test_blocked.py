"""Attention block by block is attention: same values, same gradients, whatever the blocks."""

import pytest
import torch
from torch import Tensor

from ludus.model import blocked
from ludus.model.attention import plain_attention
from ludus.model.blocked import blocked_attention


def heads(batch: int, count: int, time: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, time, 8, generator=generator, dtype=dtype, requires_grad=True)


def document_mask(rows: int, span: int) -> Tensor:
    """Let every key be seen by later ones of its document: three documents a row."""
    numbers = torch.randint(3, (rows, span), generator=torch.Generator().manual_seed(9)).sort(dim=1).values
    seen = (numbers[:, :, None] == numbers[:, None]) & torch.ones(span, span, dtype=torch.bool).tril()
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill_(~seen, float("-inf"))[:, None]


def both(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> list[tuple[Tensor, ...]]:
    arriving = torch.randn(queries.shape, generator=torch.Generator().manual_seed(5)).to(queries.dtype)
    found = []
    for attend in (plain_attention, blocked_attention):
        mixed = attend(queries, keys, values, mask)
        found.append((mixed.detach(), *torch.autograd.grad(mixed, (queries, keys, values), arriving)))
    return found


@pytest.mark.parametrize("entries", [blocked.ENTRIES, 1])
@pytest.mark.parametrize(
    ("batch", "query_heads", "kv_heads", "time", "span", "masked"),
    [(3, 4, 2, 300, 300, 0), (2, 4, 4, 37, 50, 0), (3, 6, 2, 260, 260, 3), (4, 4, 1, 128, 128, 1), (5, 4, 4, 1, 9, 0)],
)
def test_values_and_gradients_are_those_of_attention_written_out(
    monkeypatch, entries, batch, query_heads, kv_heads, time, span, masked
):
    monkeypatch.setattr(blocked, "ENTRIES", entries)
    queries = heads(batch, query_heads, time, 0, torch.float64)
    keys, values = (heads(batch, kv_heads, span, seed, torch.float64) for seed in (1, 2))
    plain, found = both(queries, keys, values, document_mask(masked, span) if masked else None)
    for expected, value in zip(plain, found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_bfloat16_is_as_close_to_the_truth_as_attention_written_out():
    exact = [heads(2, 4, 200, seed, torch.float64) for seed in range(3)]
    truth, _ = both(*exact, None)
    narrow = [each.detach().bfloat16().requires_grad_() for each in exact]
    for true, plain, found in zip(truth, *both(*narrow, None), strict=True):
        errors = [float((each.double() - true).norm()) for each in (plain, found)]
        assert errors[1] < 1.3 * errors[0]


def test_nothing_of_time_by_time_is_kept_for_the_way_back():
    kept: list[int] = []
    inputs = [heads(1, 2, 300, seed, torch.float32) for seed in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.numel()) or each, lambda each: each):
        blocked_attention(*inputs, None)
    assert kept
    assert max(kept) == inputs[0].numel()
