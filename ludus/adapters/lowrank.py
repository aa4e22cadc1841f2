"""How a frozen layer with a low-rank change is multiplied, forward and back, at little more than the layer alone costs.

The frozen weight gets no gradient, and no more is kept than what comes in (and what goes out, where the lengths of
rows are learned). In float32 on a processor the change is added to the weights, which costs one product of two small
matrices instead of two over all tokens; a narrower dtype would round so small a change away, so there it stays apart.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDE = (torch.float32, torch.float64)


class Fixed(NamedTuple):
    """The factors that a change began with, subtracted from it for ever: what is learned starts at nothing (PiSSA)."""

    A: Tensor
    B: Tensor


class LowRank:
    """The product with W + scale B A; with `lengths`, those rows brought to lengths that are learned too (DoRA)."""

    def __init__(
        self, base: nn.Module, scale: float, learned: tuple[Tensor, ...], fixed: Fixed | None, squares: Tensor | None
    ) -> None:
        self.base, self.scale, self.learned, self.fixed, self.squares = base, scale, learned, fixed, squares
        self.keeps_output = len(learned) == 3
        self._scales: Tensor | None = None  # of one call, for its way back

    def __call__(self, x: Tensor, learned: Sequence[Tensor]) -> Tensor:
        """Map the last dimension."""
        bias = self._bias(x.dtype)
        if self.folds(x):
            weight, _ = self._folded(learned, x.dtype)
            return F.linear(x, weight, bias)
        factors, scales = self._apart(learned, x.dtype)
        out = F.linear(x, self._frozen(x.dtype), bias if scales is None else None)
        out.flatten(0, -2).addmm_(F.linear(x.flatten(0, -2), factors[0]), factors[1].T)
        if scales is not None:
            # By what is missing to one, which a narrow dtype still tells apart; to widen the output would cost as much
            # as the product.
            out.addcmul_(out, (scales - 1).to(out.dtype))
            out = out if bias is None else out.add_(bias)
        return out

    def back(
        self, gradient: Tensor, x: Tensor, output: Tensor | None, learned: Sequence[Tensor], of_input: bool
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Return the gradient of what came in, if asked for, and those of A, B and the lengths."""
        shape, x, gradient, folds = x.shape, x.flatten(0, -2), gradient.flatten(0, -2), self.folds(x)
        of_lengths = self._of_lengths(gradient, output, learned)
        weight, (inward, outward), scales = self._parts(learned, x.dtype, folds)
        # Few rows on the left and all tokens on the right: the order in which a processor multiplies them fastest.
        arrived = outward.T @ gradient.T  # (rank, tokens)
        of_x = None
        if of_input:
            of_x = gradient @ weight
            of_x = (of_x if folds else of_x.addmm_(arrived.T, inward)).view(shape)
        rank = len(learned[0])
        of_inward = arrived[:rank] @ x
        of_outward = ((inward[:rank] @ x.T) @ gradient).T * self.scale
        of_outward = of_outward if scales is None else of_outward * scales[:, None]
        found = (of_inward.to(learned[0].dtype), of_outward.to(learned[1].dtype), of_lengths)
        return of_x, list(found[: len(learned)])

    def _parts(
        self, learned: Sequence[Tensor], dtype: torch.dtype, folds: bool
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """Return the weight that gradients go back through, both factors, and the scales of rows that they hold."""
        if folds:
            weight, scales = self._folded(learned, dtype)
            factors = self._factors(learned, dtype)
        else:
            factors, scales = self._apart(learned, dtype)
            weight = self._frozen(dtype) if scales is None else (self._frozen(scales.dtype) * scales[:, None]).to(dtype)
        if scales is None:
            return weight, factors, None
        return weight, (factors[0], (factors[1] * scales[:, None]).to(dtype)), scales

    def folds(self, x: Tensor) -> bool:
        """Tell whether the change is added to the weights: where nothing is rounded away by it, and where it pays."""
        if x.dtype not in WIDE or x.device.type != "cpu" or torch.get_float32_matmul_precision() != "highest":
            return False
        rows, columns = len(self.learned[1]), x.shape[-1]
        return x.shape[:-1].numel() * (rows + columns) >= rows * columns

    def _frozen(self, dtype: torch.dtype) -> Tensor:
        return self.base.weight.to(dtype) if isinstance(self.base, nn.Linear) else self.base.dense(dtype)  # type: ignore[operator]

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        bias: Any = self.base.bias
        return None if bias is None else bias.to(dtype)

    def _factors(self, learned: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return A and scale B, and below and beside them those that the change began with."""
        A, B = learned[:2]  # noqa: N806 - the field's names
        if self.fixed is not None:
            A, B = torch.cat((A, self.fixed.A)), torch.cat((B, -self.fixed.B), dim=1)  # noqa: N806
        return A.to(dtype), (B * self.scale).to(dtype)

    def _folded(self, learned: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return the weight of the one layer that computes the same, and what its rows were multiplied by."""
        A, B = self._factors(learned, dtype)  # noqa: N806
        weight = torch.addmm(self._frozen(dtype), B, A)
        if len(learned) < 3:
            return weight, None
        scales = learned[2].to(dtype) / _safe(torch.linalg.vector_norm(weight, dim=1))
        return weight.mul_(scales[:, None]), scales

    def _apart(self, learned: Sequence[Tensor], dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """Return the factors, and what the rows are to be multiplied by."""
        factors = self._factors(learned, dtype)
        if len(learned) < 3:
            return factors, None
        if self._scales is None:
            wide = torch.promote_types(learned[2].dtype, torch.float32)
            with torch.autocast(factors[0].device.type, enabled=False):
                norms = row_norms(self._frozen(wide), self.squares, *self._factors(learned, wide))
            self._scales = learned[2].to(wide) / norms
        return factors, self._scales

    def _of_lengths(self, gradient: Tensor, output: Tensor | None, learned: Sequence[Tensor]) -> Tensor | None:
        """Return the gradient of the lengths: what goes out is proportional to them, but for the bias."""
        if output is None or len(learned) < 3:
            return None
        lengths = learned[2]
        wide = torch.promote_types(lengths.dtype, gradient.dtype)
        found = (gradient * output.flatten(0, -2)).sum(dim=0, dtype=wide)
        if self.base.bias is not None:
            found -= gradient.sum(dim=0, dtype=wide) * self.base.bias  # type: ignore[operator]
        return torch.where(lengths == 0, 0.0, found / _safe(lengths)).to(lengths.dtype)


class _Product(torch.autograd.Function):
    """One layer, on its own."""

    @staticmethod
    def forward(ctx: Any, product: LowRank, x: Tensor, *learned: Tensor) -> Tensor:
        out = product(x, learned)
        ctx.save_for_backward(x, out if product.keeps_output else None, *learned)
        ctx.product = product
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, out, *learned = ctx.saved_tensors
        of_input, found = ctx.product.back(gradient, x, out, learned, ctx.needs_input_grad[1])
        return None, of_input, *found


def multiply(product: LowRank, x: Tensor) -> Tensor:
    """Map the last dimension, with a graph where one is asked for."""
    if torch.is_grad_enabled():
        return _Product.apply(product, x, *product.learned)  # type: ignore[return-value]
    return product(x, product.learned)


def row_norms(weight: Tensor, squares: Tensor | None, inward: Tensor, outward: Tensor) -> Tensor:
    """Return the length of each row of W + B A without making it (arXiv 2402.09353 §4.3, expanded).

    |W + B A|^2 = |W|^2 + 2 B . (W A^T) + (B A A^T) . B, row by row, in the dtype of the arguments, which should be
    wide: rows that nearly cancel lose digits. `squares` is |W|^2, if it is known.
    """
    if squares is None:
        squares = weight.square().sum(dim=1)
    crossed = (weight @ inward.T).mul_(2).addmm_(outward, inward @ inward.T)
    found = squares + (crossed * outward).sum(dim=1)
    return _safe(found.clamp(min=0).sqrt())


def _safe(lengths: Tensor) -> Tensor:
    """Put one where nothing can be divided by: a row of nothing but zeros has no direction."""
    return torch.where(lengths == 0, 1.0, lengths)
