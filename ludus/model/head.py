"""From hidden states to log-probabilities of given tokens, without ever holding all logits.

The logits of a batch are its largest tensor: rows x vocabulary. Here they exist for a few hundred rows at a time, once
forward and once more backward; what is recomputed is one matrix product, what is saved is most of a small model's time
and memory. The result is that of a log-softmax over all logits.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_ENTRIES = 1 << 20  # logits at a time: 4 MB in float32, so that they stay in the processor's cache


class _TargetLogps(torch.autograd.Function):
    """log softmax(hidden @ weight.T) at the targets, and the entropy of each row's distribution."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, precision: torch.dtype, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        narrow = weight.to(precision)
        logps = torch.empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        normalisers, entropies = torch.empty_like(logps), torch.zeros_like(logps)
        for rows in _chunks(len(hidden), len(weight)):
            logits = (hidden[rows].to(precision) @ narrow.T).to(logps.dtype)
            normalisers[rows] = logits.logsumexp(dim=-1)
            logps[rows] = logits.gather(1, targets[rows, None])[:, 0] - normalisers[rows]
            if entropy:
                probabilities = (logits - normalisers[rows, None]).exp_()
                entropies[rows] = normalisers[rows] - probabilities.mul_(logits).sum(dim=-1)
        ctx.save_for_backward(hidden, weight, targets, normalisers)
        ctx.precision = precision
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, gradients: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalisers = ctx.saved_tensors
        narrow = weight.to(ctx.precision)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros(weight.shape, dtype=normalisers.dtype)
        for rows in _chunks(len(hidden), len(weight)):
            inputs, factors = hidden[rows].to(ctx.precision), gradients[rows, None]
            logits = (inputs @ narrow.T).to(normalisers.dtype)
            slopes = logits.sub_(normalisers[rows, None]).exp_().mul_(-factors)  # d loss / d logits
            slopes.scatter_add_(1, targets[rows, None], factors)
            slopes = slopes.to(ctx.precision)
            hidden_gradient[rows] = (slopes @ narrow).to(hidden.dtype)
            if ctx.needs_input_grad[1]:  # not under an adapter, whose base is frozen
                weight_gradient += slopes.T @ inputs
        return hidden_gradient, weight_gradient.to(weight.dtype), None, None, None


def target_logps(
    hidden: Float[Tensor, "rows channels"],
    weight: Float[Tensor, "vocab channels"],
    targets: Int[Tensor, " rows"],
    *,
    precision: torch.dtype,
    entropy: bool = False,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Return log p(target) of each row and, if asked, the entropy of its distribution in nats, without a gradient.

    Matrix products run in `precision`, everything else in float32 or wider.
    """
    wide = torch.promote_types(hidden.dtype, precision) if precision == torch.float32 else precision
    return _TargetLogps.apply(hidden, weight, targets, wide, entropy)


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_ENTRIES // vocabulary)
    return [slice(start, start + size) for start in range(0, rows, size)]
