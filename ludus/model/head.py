"""From hidden states to losses and log-probabilities of given tokens, without ever holding all logits of a large batch.

The logits of a batch are its largest tensor: rows x vocabulary. Where they are many they exist for some rows at a time.
`summed_loss` knows its own slope, so it makes its gradient while the logits are there: three matrix products, none
repeated. `target_logps` serves losses it does not know, so it repeats one product in the backward pass instead.
Values and gradients are those of a log-softmax over all logits.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# Measured on one Zen 5 core. Each chunk reads the weight twice and adds to its gradient once, whatever its rows: below
# 256 rows in float32, 512 in a narrower dtype (whose sums are converted), that costs more than the products themselves.
# Up to `WHOLE_ENTRIES` logits, chunks save less memory (32 MB) than they cost time.
WHOLE_ENTRIES = 1 << 23
CHUNK_ENTRIES = {"cpu": 1 << 20}  # logits at a time; 4 MB in float32, so that they stay in the processor's cache
ACCELERATOR_ENTRIES = 1 << 27  # 512 MB: products large enough to fill a device
LEAST_ROWS = {torch.float32: 256, torch.float64: 256}
NARROW_ROWS = 512
SPENT_ENTRIES = 1 << 22  # a weight's gradient of this size is handed over, not copied


class TargetLogps(NamedTuple):
    """What the head says of each row; the last two carry gradients too, for z-loss and label smoothing.

    `entropies` (nats, without gradient) are zero where not asked for, and so are `mean_logps`, the mean of log p over
    the whole vocabulary. `normalisers` are the logarithms of the softmax's denominator.
    """

    logps: Float[Tensor, " rows"]
    entropies: Float[Tensor, " rows"]
    normalisers: Float[Tensor, " rows"]
    mean_logps: Float[Tensor, " rows"]


class LossSums(NamedTuple):
    """Weighted sums over rows, in nats; only `loss` has a gradient."""

    loss: Float[Tensor, ""]
    nll: Float[Tensor, ""]
    z_loss: Float[Tensor, ""]


def target_logps(
    hidden: Float[Tensor, "rows channels"],
    weight: Float[Tensor, "vocab channels"],
    targets: Int[Tensor, " rows"],
    *,
    precision: torch.dtype,
    entropy: bool = False,
    mean: bool = False,
    softcap: float | None = None,
    bias: Float[Tensor, " vocab"] | None = None,
    chunk_entries: int | None = None,
) -> TargetLogps:
    """Return log p(target) of each row, its normaliser and, if asked, entropy and mean over the vocabulary.

    Matrix products run in `precision`, everything else in float32 or wider. Logits are softcap * tanh(logits / softcap)
    where a soft-cap is given. `chunk_entries` bounds how many logits exist at once: None = what pays, 0 = all.
    """
    precision = _product(hidden, precision)
    size = rows_at_a_time(hidden, weight, precision, chunk_entries)
    if size < len(hidden):
        return TargetLogps(
            *_TargetLogps.apply(hidden, weight, bias, targets, precision, softcap, size, (entropy, mean))
        )
    logits = _whole(hidden, weight, bias, precision, softcap)
    scores, logps = logits.gather(1, targets[:, None])[:, 0], logits.log_softmax(dim=-1)
    found = logps.gather(1, targets[:, None])[:, 0]
    none = torch.zeros_like(found)
    entropies = -(logps.detach().exp() * logps.detach()).sum(dim=-1) if entropy else none
    return TargetLogps(found, entropies, scores - found, logps.mean(dim=-1) if mean else none)


def summed_loss(
    hidden: Float[Tensor, "rows channels"],
    weight: Float[Tensor, "vocab channels"],
    targets: Int[Tensor, " rows"],
    weights: Float[Tensor, " rows"] | None,
    *,
    precision: torch.dtype,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    bias: Float[Tensor, " vocab"] | None = None,
    chunk_entries: int | None = None,
) -> LossSums:
    """Sum the weighted cross-entropy, its gradient made on the way (arXiv 2410.10989); no `weights` are ones.

    `z_loss` weighs the square of the softmax's log-normaliser (arXiv 2204.02311 §5); `label_smoothing` is the share of
    the target's probability spread evenly over the vocabulary (arXiv 1512.00567 §7). `loss` has both, `nll` neither.
    A loss may be taken backward once where the head is large; see `target_logps` for the other arguments.
    """
    precision = _product(hidden, precision)
    size = rows_at_a_time(hidden, weight, precision, chunk_entries)
    if size >= len(hidden) and len(hidden) * len(weight) <= WHOLE_ENTRIES:
        logits = _whole(hidden, weight, bias, precision, softcap)
        return plain_loss(logits, targets, weights, z_loss=z_loss, label_smoothing=label_smoothing)
    terms = (z_loss, label_smoothing, softcap)
    learned = tuple(torch.is_grad_enabled() and (x is not None and x.requires_grad) for x in (hidden, weight, bias))
    return LossSums(*_SummedLoss.apply(hidden, weight, bias, targets, weights, precision, terms, size, learned))


def plain_loss(
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"],
    weights: Float[Tensor, " rows"] | None,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> LossSums:
    """Sum the loss of `summed_loss` from logits that are there, in as few operations as it takes."""
    none = logits.new_zeros(())
    if weights is None and not z_loss and not label_smoothing:
        loss = F.cross_entropy(logits, targets, reduction="sum")
        return LossSums(loss, loss.detach(), none)
    logps = logits.log_softmax(dim=-1)
    nll = -logps.gather(1, targets[:, None])[:, 0]
    each = nll if not label_smoothing else (1 - label_smoothing) * nll - label_smoothing * logps.mean(dim=-1)
    squares = z_loss * logits.logsumexp(dim=-1).square() if z_loss else none.expand_as(nll)
    each = each + squares if z_loss else each
    loss, plain, extra = (
        values.sum() if weights is None else (weights * values).sum()
        for values in (each, nll.detach(), squares.detach())
    )
    return LossSums(loss, plain, extra)


def rows_at_a_time(hidden: Tensor, weight: Tensor, precision: torch.dtype, entries: int | None) -> int:
    """Return how many rows of logits may exist at once: as many as fit in `entries`, or what was measured to pay."""
    rows, vocabulary = max(1, len(hidden)), len(weight)
    if entries == 0 or (entries is None and rows * vocabulary <= WHOLE_ENTRIES):
        return rows
    if entries is not None:
        return max(1, entries // vocabulary)
    kept = CHUNK_ENTRIES.get(hidden.device.type, ACCELERATOR_ENTRIES) // vocabulary
    return max(kept, LEAST_ROWS.get(precision, NARROW_ROWS))


class _SummedLoss(torch.autograd.Function):
    """Cross-entropy whose gradient is complete, up to one factor, when the forward pass ends."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor | None,
        precision: torch.dtype,
        terms: tuple[float, float, float | None],
        size: int,
        learned: tuple[bool, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        z_loss, smoothing, softcap = terms
        narrow, narrow_bias = weight.to(precision), _narrow(bias, precision)
        wide = torch.promote_types(precision, torch.float32)
        gradients = _Gradients(hidden, weight, bias, learned, wide)
        nll, squares, means = (torch.zeros(len(hidden), dtype=wide, device=hidden.device) for _ in range(3))
        for rows in _chunks(len(hidden), size):
            inputs, places = hidden[rows].to(precision), targets[rows, None]
            logits = _logits(inputs, narrow, narrow_bias)
            bend = _soften(logits, softcap, any(learned))
            scores = logits.gather(1, places)
            logps = torch.log_softmax(logits, dim=-1)
            found = logps.gather(1, places)
            nll[rows] = -found[:, 0]
            normalisers = scores - found
            if z_loss:
                squares[rows] = normalisers[:, 0].square()
            if smoothing:
                means[rows] = logps.mean(dim=-1)
            if any(learned):
                slopes = logps.exp_()
                if z_loss:
                    slopes.mul_(normalisers.mul_(2 * z_loss).add_(1))
                if smoothing:
                    slopes.sub_(smoothing / len(weight))
                slopes.scatter_add_(1, places, slopes.new_full((1, 1), smoothing - 1).expand_as(places))
                if weights is not None:
                    slopes.mul_(weights[rows, None])
                gradients.add(rows, slopes if bend is None else slopes.mul_(bend), inputs, narrow)
        ctx.gradients = gradients.found
        if weights is not None:
            nll, squares, means = nll * weights, squares * weights, means * weights
        plain, z = nll.sum(), z_loss * squares.sum()
        loss = plain + z if z_loss else plain.clone()
        if smoothing:
            loss = loss - smoothing * (plain + means.sum())
        ctx.mark_non_differentiable(plain, z)
        return loss, plain, z

    @staticmethod
    def backward(ctx: Any, factor: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.gradients
        if found is None:
            raise RuntimeError("a loss over a large vocabulary goes backward once; compute it again")
        if any(gradient is not None and gradient.numel() > SPENT_ENTRIES for gradient in found):
            ctx.gradients = None
            return *(None if gradient is None else gradient.mul_(factor) for gradient in found), *[None] * 6
        return *(None if gradient is None else gradient * factor for gradient in found), *[None] * 6


class _TargetLogps(torch.autograd.Function):
    """Log-probabilities in chunks; the backward pass computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        precision: torch.dtype,
        softcap: float | None,
        size: int,
        asked: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        narrow, narrow_bias = weight.to(precision), _narrow(bias, precision)
        wide = torch.promote_types(precision, torch.float32)
        found, entropies, normalisers, means = (
            torch.zeros(len(hidden), dtype=wide, device=hidden.device) for _ in range(4)
        )
        for rows in _chunks(len(hidden), size):
            logits, places = _logits(hidden[rows].to(precision), narrow, narrow_bias), targets[rows, None]
            _soften(logits, softcap, False)
            scores, logps = logits.gather(1, places)[:, 0], torch.log_softmax(logits, dim=-1)
            found[rows] = logps.gather(1, places)[:, 0]
            normalisers[rows] = scores - found[rows]
            if asked[0]:
                entropies[rows] = -(logps.exp() * logps).sum(dim=-1)
            if asked[1]:
                means[rows] = logps.mean(dim=-1)
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers)
        ctx.how = precision, softcap, size, asked[1]
        ctx.mark_non_differentiable(entropies)
        return found, entropies, normalisers, means

    @staticmethod
    def backward(
        ctx: Any, of_logps: Tensor, _: Tensor, of_normalisers: Tensor, of_means: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        precision, softcap, size, mean = ctx.how
        narrow, narrow_bias = weight.to(precision), _narrow(bias, precision)
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad[:3], normalisers.dtype)
        of_softmax = of_normalisers - of_logps - of_means if mean else of_normalisers - of_logps
        for rows in _chunks(len(hidden), size):
            inputs = hidden[rows].to(precision)
            logits = _logits(inputs, narrow, narrow_bias)
            bend = _soften(logits, softcap, True)
            slopes = logits.sub_(normalisers[rows, None]).exp_().mul_(of_softmax[rows, None])
            if mean:
                slopes.add_(of_means[rows, None] / len(weight))
            slopes.scatter_add_(1, targets[rows, None], of_logps[rows, None])
            gradients.add(rows, slopes if bend is None else slopes.mul_(bend), inputs, narrow)
        return *gradients.found, *[None] * 5


class _Gradients:
    """The gradients of hidden states, weight and bias as chunk after chunk adds to them; None for what is frozen."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, learned: tuple[bool, ...], wide: torch.dtype
    ) -> None:
        self.dtype = weight.dtype
        self.hidden = torch.zeros_like(hidden) if learned[0] else None
        self.weight = torch.zeros(0, dtype=wide, device=weight.device) if learned[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if bias is not None and learned[2] else None
        self.like = weight

    def add(self, rows: slice, slopes: Tensor, inputs: Tensor, narrow: Tensor) -> None:
        """Add what a chunk's slopes, d loss / d logits, say."""
        if self.bias is not None:
            self.bias += slopes.sum(dim=0)
        slopes = slopes.to(narrow.dtype)
        if self.hidden is not None:
            self.hidden[rows] = slopes @ narrow
        if self.weight is None:
            return
        if not self.weight.numel():  # the first chunk, often the only one, has nothing to add to
            self.weight = (slopes.T @ inputs).to(self.weight.dtype)
        elif narrow.dtype == self.weight.dtype:
            self.weight.addmm_(slopes.T, inputs)
        else:
            self.weight += slopes.T @ inputs

    @property
    def found(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return them in the dtypes of what they belong to."""
        weight = self.weight
        if weight is not None:
            weight = weight.to(self.dtype) if weight.numel() else torch.zeros_like(self.like)
        return self.hidden, weight, None if self.bias is None else self.bias.to(self.dtype)


def _product(hidden: Tensor, precision: torch.dtype) -> torch.dtype:
    return torch.promote_types(hidden.dtype, precision) if precision == torch.float32 else precision


def _narrow(bias: Tensor | None, precision: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(precision)


def _logits(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(inputs, weight, bias).to(torch.promote_types(inputs.dtype, torch.float32))


def _whole(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, precision: torch.dtype, softcap: float | None
) -> Tensor:
    """Return all logits, with a graph."""
    logits = _logits(hidden.to(precision), weight.to(precision), _narrow(bias, precision))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _soften(logits: Tensor, softcap: float | None, slope: bool) -> Tensor | None:
    """Cap logits in place; return the slope of the capped by the uncapped ones if asked, None where it is one."""
    if softcap is None:
        return None
    logits.div_(softcap).tanh_()
    bend = 1 - logits.square() if slope else None
    logits.mul_(softcap)
    return bend


def _chunks(rows: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, rows, size)]
