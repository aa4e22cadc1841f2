"""From hidden states to losses and log-probabilities of given tokens, without ever holding all logits of a large batch.

The logits of a batch are its largest tensor: rows x vocabulary. Where they are many they exist for some rows at a time.
`summed_loss` knows its own slope, so it makes its gradient while the logits are there: three matrix products, none
repeated. `target_logps` serves losses it does not know, so it repeats one product in the backward pass instead.
Values and gradients are those of a log-softmax over all logits.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# Measured on one Zen 5 core, bfloat16 and float32, width 128 to 768, vocabulary 65 to 50,257.
# The bare loss of so few logits is plain cross-entropy: nothing has less around it. With more, memory that is asked for
# anew at each step makes it slower than parts in the cache: 1.3 times in float32 at 16 million logits, 2.2 in bfloat16.
PLAIN_ENTRIES = 1 << 21
# Each chunk reads the weight twice and adds to its gradient once, whatever its rows. In float32 from 256 rows on that
# costs nothing to speak of; in a narrower dtype, whose sums are converted, 256 rows cost 38 % over 2048. 512 rows, with
# the sums added in parts, cost no more than those and hold a quarter of the logits.
WHOLE_ENTRIES = 1 << 23  # in one chunk in any case
CHUNK_ENTRIES = {"cpu": 1 << 20}
ACCELERATOR_ENTRIES = 1 << 27  # products large enough to fill a device
LEAST_ROWS = {torch.float32: 256, torch.float64: 256}
NARROW_ROWS = 512
VOCABULARY_PART = 1 << 13  # of a weight's gradient, added at a time: the product is small beside the sum
CACHED_ENTRIES = 1 << 18  # logits worked on between two products: 1 MB in float32, so that they stay in a cache
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
    few = size >= len(hidden) and len(hidden) * len(weight) <= PLAIN_ENTRIES
    if few and not z_loss and not label_smoothing:
        return plain_loss(_whole(hidden, weight, bias, precision, softcap), targets, weights)
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
    kept = max(kept, LEAST_ROWS.get(precision, NARROW_ROWS))
    return -(-rows // -(-rows // kept))  # chunks of one size: no small one at the end


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
            inputs = hidden[rows].to(precision)
            logits = F.linear(inputs, narrow, narrow_bias)
            for at, part in _blocks(rows, logits):
                places, slopes = targets[at, None], part.to(wide)
                bend = _soften(slopes, softcap, any(learned))
                scores = slopes.gather(1, places)
                slopes = slopes.log_softmax(dim=-1)
                found = slopes.gather(1, places)
                nll[at] = -found[:, 0]
                normalisers = scores - found
                if z_loss:
                    squares[at] = normalisers[:, 0].square()
                if smoothing:
                    means[at] = slopes.mean(dim=-1)
                if any(learned):
                    slopes.exp_()
                    _bend_to_loss(slopes, places, normalisers, z_loss, smoothing)
                    gradients.keep(part, slopes, bend, None if weights is None else weights[at, None])
            gradients.add(rows, logits, inputs, narrow)
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
            for at, part in _blocks(rows, F.linear(hidden[rows].to(precision), narrow, narrow_bias)):
                logits, places = part.to(wide), targets[at, None]
                _soften(logits, softcap, False)
                scores, logps = logits.gather(1, places)[:, 0], logits.log_softmax(dim=-1)
                found[at] = logps.gather(1, places)[:, 0]
                normalisers[at] = scores - found[at]
                if asked[0]:
                    entropies[at] = -(logps.exp() * logps).sum(dim=-1)
                if asked[1]:
                    means[at] = logps.mean(dim=-1)
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
            logits = F.linear(inputs, narrow, narrow_bias)
            for at, part in _blocks(rows, logits):
                slopes = part.to(normalisers.dtype)
                bend = _soften(slopes, softcap, True)
                slopes.sub_(normalisers[at, None]).exp_().mul_(of_softmax[at, None])
                if mean:
                    slopes.add_(of_means[at, None] / len(weight))
                slopes.scatter_add_(1, targets[at, None], of_logps[at, None])
                gradients.keep(part, slopes, bend, None)
            gradients.add(rows, logits, inputs, narrow)
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

    def keep(self, part: Tensor, slopes: Tensor, bend: Tensor | None, factors: Tensor | None) -> None:
        """Put finished slopes, d loss / d logits, where the logits were."""
        for factor in (bend, factors):
            if factor is not None:
                slopes.mul_(factor)
        if self.bias is not None:
            self.bias += slopes.sum(dim=0)
        part.copy_(slopes)

    def add(self, rows: slice, slopes: Tensor, inputs: Tensor, narrow: Tensor) -> None:
        """Add what a chunk's slopes say."""
        if self.hidden is not None:
            self.hidden[rows] = slopes @ narrow
        if self.weight is None:
            return
        if not self.weight.numel():  # the first chunk, often the only one, has nothing to add to
            self.weight = (slopes.T @ inputs).to(self.weight.dtype)
        elif narrow.dtype == self.weight.dtype:
            self.weight.addmm_(slopes.T, inputs)
        else:
            for part in _chunks(len(self.weight), VOCABULARY_PART):
                self.weight[part] += slopes[:, part].T @ inputs

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


def _bend_to_loss(slopes: Tensor, places: Tensor, normalisers: Tensor, z_loss: float, smoothing: float) -> None:
    """Turn probabilities into d loss / d logits of each row, in place."""
    if z_loss:
        slopes.mul_(normalisers * (2 * z_loss) + 1)
    if smoothing:
        slopes.sub_(smoothing / slopes.shape[1])
    slopes.scatter_add_(1, places, slopes.new_full((1, 1), smoothing - 1).expand_as(places))


def _blocks(rows: slice, logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Cut a chunk of logits into parts that stay in a processor's cache, each with its row numbers in the batch."""
    size = len(logits) if logits.device.type != "cpu" else max(1, CACHED_ENTRIES // logits.shape[1])
    for start in range(0, len(logits), size):
        part = logits[start : start + size]
        yield slice(rows.start + start, rows.start + start + len(part)), part


def _chunks(rows: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, rows, size)]
