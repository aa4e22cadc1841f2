"""The mesh: what the loop asks of many processes. One process is a mesh of one.

Ranks hold replicas and *sum* their gradients; the loop has already divided by the global count, so nothing is averaged
twice. Sharded meshes will answer the same three questions.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as distributed
from torch import Tensor, nn


class Mesh:
    """One process."""

    rank = 0
    ranks = 1

    def sum(self, value: float | Tensor) -> float:
        """Return the sum of a number over all ranks."""
        return float(value)

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a number over all ranks, on its device, which is not waited for."""
        return value

    def sum_all(self, values: Mapping[str, float | Tensor]) -> dict[str, float]:
        """Return the sums of several numbers over all ranks: one message, and one wait for an accelerator."""
        return dict(zip(values, _table(values).tolist(), strict=True))

    @contextlib.contextmanager
    def gradient_sync(self, model: nn.Module, *, on: bool) -> Iterator[None]:
        """Sum the model's gradients over ranks when the block ends, if `on`: at the last micro-batch of a step."""
        yield
        if on:
            self.sum_gradients(model)

    def sum_gradients(self, model: nn.Module) -> None:
        """Sum gradients over ranks, in place."""

    def clip_(self, model: nn.Module, limit: float, scale: float | Tensor = 1.0) -> Tensor:
        """Undo a loss scale and scale the gradients so that their global norm is at most `limit`.

        Returns:
            The norm before clipping, of gradients without the loss scale: 0-dim, on the device, which is not waited
            for. Where it is infinite or NaN the gradients are left unusable, and the step must be skipped.
        """
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not gradients:
            return torch.zeros(())
        norms = torch._foreach_norm(gradients)  # type: ignore[attr-defined]
        norm = torch.linalg.vector_norm(torch.stack([each.to(norms[0].device) for each in norms])) / scale
        factor = (limit / (norm + 1e-6)).clamp(max=1.0) / scale
        if norm.device.type != "cpu" or float(factor) != 1.0:  # only a processor can look without waiting
            torch._foreach_mul_(gradients, factor)  # type: ignore[attr-defined]
        return norm


class Replicas(Mesh):
    """Data parallelism: every rank of the process group holds the whole model."""

    def __init__(self) -> None:
        self.rank, self.ranks = distributed.get_rank(), distributed.get_world_size()
        self.device = torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")  # of what is sent

    def sum(self, value: float | Tensor) -> float:
        """Return the sum of a number over all ranks, added in float64."""
        return self.sum_all({"value": value})["value"]

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a number over all ranks, on its device."""
        total = value.detach().to(self.device, torch.float64 if self.device.type == "cpu" else torch.float32)
        total = total.clone()
        distributed.all_reduce(total)
        return total.to(value.device, value.dtype)

    def sum_all(self, values: Mapping[str, float | Tensor]) -> dict[str, float]:
        """Return the sums of several numbers over all ranks, added in float64 in one message."""
        table = _table(values).to(self.device)
        distributed.all_reduce(table)
        return dict(zip(values, table.tolist(), strict=True))

    def sum_gradients(self, model: nn.Module) -> None:
        """Sum gradients over ranks in one message; a rank whose examples missed a parameter adds zero."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in parameters])  # type: ignore[union-attr]
        distributed.all_reduce(flat)
        pieces = flat.split([parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad.copy_(piece.view_as(parameter))  # type: ignore[union-attr]


def _table(values: Mapping[str, float | Tensor]) -> Tensor:
    """Stack numbers in float64, on the device of those that are on one; a copy, so that a message may overwrite it."""
    if not values:
        return torch.zeros(0, dtype=torch.float64)
    found = [value.detach() if isinstance(value, Tensor) else _number(value) for value in values.values()]
    device = next((value.device for value in found if value.device.type != "cpu"), torch.device("cpu"))
    wide = torch.float32 if device.type == "mps" else torch.float64  # which that device has not
    return torch.stack([value.to(device, wide) for value in found])


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def current() -> Mesh:
    """Return the mesh this process belongs to: replicas under torchrun, else a mesh of one."""
    return Replicas() if distributed.is_available() and distributed.is_initialized() else Mesh()
