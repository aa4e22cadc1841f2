"""The mesh: what the loop asks of many processes. One process is a mesh of one.

Ranks hold replicas and *sum* their gradients; the loop has already divided by the global count, so nothing is averaged
twice. Sharded meshes will answer the same three questions.
"""

import contextlib
from collections.abc import Iterator

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

    @contextlib.contextmanager
    def gradient_sync(self, model: nn.Module, *, on: bool) -> Iterator[None]:
        """Sum the model's gradients over ranks when the block ends, if `on`: at the last micro-batch of a step."""
        yield
        if on:
            self.sum_gradients(model)

    def sum_gradients(self, model: nn.Module) -> None:
        """Sum gradients over ranks, in place."""

    def clip_(self, model: nn.Module, limit: float) -> float:
        """Scale the gradients so that their global norm is at most `limit`; return the norm before."""
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        return float(nn.utils.clip_grad_norm_(parameters, limit))


class Replicas(Mesh):
    """Data parallelism: every rank of the process group holds the whole model."""

    def __init__(self) -> None:
        self.rank, self.ranks = distributed.get_rank(), distributed.get_world_size()

    def sum(self, value: float | Tensor) -> float:
        """Return the sum of a number over all ranks, added in float64."""
        total = torch.as_tensor(value, dtype=torch.float64).detach().clone()
        distributed.all_reduce(total)
        return float(total)

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


def current() -> Mesh:
    """Return the mesh this process belongs to: replicas under torchrun, else a mesh of one."""
    return Replicas() if distributed.is_available() and distributed.is_initialized() else Mesh()
