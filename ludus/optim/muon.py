"""Muon: momentum, then the nearest orthogonal matrix, as the update of each weight matrix.

After Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). Matrices of one shape share their
momentum's memory and are orthogonalised together, which on a CPU saves most of the cost; a stack of experts is so many
matrices. Over several ranks each matrix has one owner, which orthogonalises it for all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from ludus.optim.orthogonal import Method, orthogonalise


@dataclass
class Stack:
    """Parameters made of matrices of one shape, with what Muon remembers of them: (count, rows, columns)."""

    parameters: list[Tensor]
    first: int  # owner of the first matrix, before it is taken modulo the number of ranks
    momentum: Tensor
    rows: Tensor | None = None  # second moment of the rows, (count, rows, 1)
    spans: list[slice] = field(default_factory=list)  # which matrices are a parameter's

    def matrices(self, tensors: list[Tensor]) -> Tensor:
        """Lay tensors of the parameters' shapes out as one stack of their own."""
        return torch.cat([tensor.reshape(-1, *self.momentum.shape[1:]) for tensor in tensors])


@dataclass(frozen=True)
class Recipe:
    """How momentum becomes an update; see `MuonSettings` for the fields."""

    momentum: float = 0.95
    momentum_start: float = 0.85
    momentum_warmup: int = 0
    nesterov: bool = True
    method: Method = "newton_schulz"
    iterations: int = 5
    scale: str = "shape"
    normalised: bool = False
    row_beta: float = 0.95
    precision: torch.dtype = torch.float32


class Muon:
    """Muon over matrices only; give embeddings, heads and vectors to AdamW.

    `ranks` processes with the same gradients share the work: every rank must call `step` alike.
    """

    def __init__(self, groups: list[dict], *, rank: int = 0, ranks: int = 1, recipe: Recipe | None = None) -> None:
        """Each group has `params`, `lr` and `weight_decay`."""
        self.param_groups: list[dict[str, Any]] = [{"weight_decay": 0.0} | group for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.recipe, self.rank, self.ranks = recipe or Recipe(), rank, ranks
        self.stacks: list[list[Stack]] = []  # of each group, once there is something to remember
        self.steps: Tensor | None = None  # updates so far, where the momentum warms up

    @torch.no_grad()
    def step(self, *, skip: Tensor | None = None) -> None:
        """Update every matrix that has a gradient, unless `skip` (0-dim, bool, on the device of the weights) is true.

        Skipped, weights and state keep every bit, whatever the gradients hold, and the host never waits to know.
        """
        if not self.stacks:
            self.remember({})
        momentum = self._momentum(skip)
        for group, stacks in zip(self.param_groups, self.stacks, strict=True):
            for stack in stacks:
                self._update(stack, group, momentum, skip)

    def remember(self, known: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
        """Begin with what is `known` of each parameter: momentum, rows, step; zeros for the rest."""
        self.state.clear()
        owner, self.stacks = 0, []
        for group in self.param_groups:
            stacks = []
            for same in _by_shape(group["params"]):
                stacks.append(self._stack(same, owner, known))
                owner += len(stacks[-1].momentum)
            self.stacks.append(stacks)
        if self.recipe.momentum_warmup and self.state:
            counts = [values["step"] for values in known.values() if "step" in values]
            device = next(iter(self.state)).device
            self.steps = counts[0].to(device, copy=True) if counts else torch.zeros((), device=device)
            for values in self.state.values():
                values["step"] = self.steps

    def _stack(self, parameters: list[Tensor], owner: int, known: Mapping[Tensor, Mapping[str, Tensor]]) -> Stack:
        rows, columns = parameters[0].shape[-2:]
        count = sum(parameter.numel() for parameter in parameters) // (rows * columns)
        stack = Stack(parameters, owner, parameters[0].new_zeros(count, rows, columns))
        stack.rows = parameters[0].new_zeros(count, rows, 1) if self.recipe.normalised else None
        start = 0
        for parameter in parameters:
            span = slice(start, start := start + parameter.numel() // (rows * columns))
            stack.spans.append(span)
            values = {"momentum": stack.momentum[span].view(parameter.shape)}
            if stack.rows is not None:
                values["rows"] = stack.rows[span].view(*parameter.shape[:-1], 1)
            for name, value in values.items():
                if name in known.get(parameter, ()):
                    value.copy_(known[parameter][name])
            self.state[parameter] = values
        return stack

    def _momentum(self, skip: Tensor | None) -> float | Tensor:
        """Return the momentum of this update, and count the update; a tensor only where the host must not wait."""
        recipe, steps = self.recipe, self.steps
        if steps is None:
            return recipe.momentum
        share = (steps / recipe.momentum_warmup).clamp(max=1)
        steps += 1 if skip is None else (~skip).to(steps.dtype)
        momentum = recipe.momentum_start + (recipe.momentum - recipe.momentum_start) * share
        return float(momentum) if momentum.device.type == "cpu" else momentum

    def _update(self, stack: Stack, group: dict, momentum: float | Tensor, skip: Tensor | None) -> None:
        chosen = [index for index, parameter in enumerate(stack.parameters) if parameter.grad is not None]
        if not chosen:
            return
        parameters = [stack.parameters[index] for index in chosen]
        whole = len(chosen) == len(stack.parameters)
        where = slice(None) if whole else _numbers([stack.spans[index] for index in chosen])
        if isinstance(momentum, Tensor):
            momentum = torch.as_tensor(momentum, dtype=stack.momentum.dtype)
        gradients = stack.matrices([parameter.grad for parameter in parameters])  # type: ignore[misc]
        self._accumulate(stack.momentum, where, gradients, momentum, skip)
        kept = stack.momentum[where]
        directions = gradients.lerp_(kept, momentum) if self.recipe.nesterov else kept
        updates = self._orthogonalise(directions, stack.first).to(kept.dtype)
        if stack.rows is not None:
            updates = self._normalise(updates, stack.rows, where, skip)
        rows, columns = updates.shape[-2:]
        scale = group["lr"] * _scale(self.recipe.scale, rows, columns)
        decay: float | Tensor = 1 - group["lr"] * group["weight_decay"]
        if skip is not None:
            updates = torch.where(skip, torch.zeros_like(updates), updates)
            decay = torch.where(skip, torch.ones_like(skip, dtype=updates.dtype), decay)
        pieces = updates.split([parameter.numel() // (rows * columns) for parameter in parameters])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, decay)  # type: ignore[attr-defined]
        torch._foreach_add_(  # type: ignore[attr-defined]
            parameters, [piece.view_as(one) for piece, one in zip(pieces, parameters, strict=True)], alpha=-scale
        )

    @staticmethod
    def _accumulate(
        kept: Tensor, where: slice | list[int], new: Tensor, keep: float | Tensor, skip: Tensor | None
    ) -> None:
        """Move what is kept towards what is new, in place."""
        if skip is None and where == slice(None):
            kept.lerp_(new, 1 - keep)
            return
        moved = kept[where].lerp(new, 1 - keep)
        kept[where] = moved if skip is None else torch.where(skip, kept[where], moved)

    def _orthogonalise(self, directions: Tensor, first: int) -> Tensor:
        """Orthogonalise the matrices this rank owns, and get the others from their owners in one exchange."""
        how = {"method": self.recipe.method, "iterations": self.recipe.iterations, "precision": self.recipe.precision}
        if self.ranks == 1:
            return orthogonalise(directions, **how)  # type: ignore[arg-type]
        count, ranks = len(directions), self.ranks
        own = directions[(self.rank - first) % ranks :: ranks]
        sent = directions.new_zeros((-(-count // ranks), *directions.shape[1:]), dtype=self.recipe.precision)
        if len(own):
            sent[: len(own)] = orthogonalise(own, **how)  # type: ignore[arg-type]
        received = sent.new_empty(ranks, *sent.shape)
        # As bytes: gloo does not know every dtype.
        distributed.all_gather_into_tensor(received.view(torch.uint8).flatten(0, 1), sent.view(torch.uint8))
        index = torch.arange(count, device=directions.device)
        return received[(index + first) % ranks, index // ranks]

    def _normalise(self, updates: Tensor, kept: Tensor, where: slice | list[int], skip: Tensor | None) -> Tensor:
        """Divide each row by its size over time, and keep the size of the whole (NorMuon, arXiv 2510.05491).

        A common factor cancels, so the second moment needs no correction for its start at zero.
        """
        sizes = updates.norm(dim=-1, keepdim=True)  # (count, rows, 1)
        self._accumulate(kept, where, sizes.square() / updates.shape[-1], self.recipe.row_beta, skip)
        factors = 1 / kept[where].sqrt().clamp(min=1e-10)
        after = (sizes * factors).norm(dim=-2, keepdim=True).clamp(min=1e-10)
        return updates * (factors * sizes.norm(dim=-2, keepdim=True) / after)


def _scale(kind: str, rows: int, columns: int) -> float:
    """Return what the rate is multiplied with.

    `shape` gives a tall matrix, whose update reaches more outputs, a larger step; `adamw` gives each entry of the
    update the root mean square of AdamW's, about 0.2, so that AdamW's rate and decay can be kept (arXiv 2502.16982).
    """
    return 0.2 * max(rows, columns) ** 0.5 if kind == "adamw" else max(1.0, rows / columns) ** 0.5


def _by_shape(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Put parameters together whose matrices are alike; the largest first, so that ranks share them evenly."""
    found: dict[tuple, list[Tensor]] = {}
    for parameter in parameters:
        found.setdefault((*parameter.shape[-2:], parameter.dtype, parameter.device), []).append(parameter)
    return sorted(found.values(), key=lambda same: -same[0].shape[-1] * same[0].shape[-2])


def _numbers(spans: list[slice]) -> list[int]:
    return [index for span in spans for index in range(span.start, span.stop)]
