"""Muon: momentum, then the nearest orthogonal matrix, as the update of each weight matrix.

After Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); Newton-Schulz iteration with
their quintic coefficients. Matrices of one shape are orthogonalised together, which on a CPU saves most of the cost.
"""

from collections import defaultdict

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steep at 0, so that five iterations bring singular values near 1


def orthogonalise(matrices: Tensor, *, iterations: int = 5, precision: torch.dtype = torch.float32) -> Tensor:
    """Return matrices (count, rows, columns) with singular values brought near 1, signs and directions kept.

    bfloat16 is enough: the iteration is stable, and the update needs a direction, not digits.
    """
    x = matrices.to(precision)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Muon over matrices only; give embeddings, heads and vectors to AdamW."""

    def __init__(self, params: list[dict], *, momentum: float, precision: torch.dtype = torch.float32) -> None:
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for same in shapes.values():
                self._update(same, group)

    def _update(self, parameters: list[Tensor], group: dict) -> None:
        directions = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            directions.append(parameter.grad.lerp(state["momentum"], group["momentum"]))  # type: ignore[union-attr]
        updates = orthogonalise(torch.stack(directions), precision=self.precision)
        rows, columns = parameters[0].shape
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.to(parameter.dtype), alpha=scale)
