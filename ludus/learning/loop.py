"""The one loop. Every stage is an objective and a source; nothing here knows which.

A sum is divided once by the global count of loss-bearing units, which is known before the forward pass: neither
micro-batches, nor padding, nor the number of ranks can change the gradient.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ludus.base.errors import CheckpointError, DataError
from ludus.data.batch import Batch
from ludus.model.transformer import Transformer
from ludus.optim.groups import Optimizer
from ludus.optim.schedules import Schedule
from ludus.parallel.mesh import Mesh

Objective = Callable[[Transformer, Batch], Mapping[str, Tensor]]
Metrics = dict[str, float]


class Source(Protocol):
    """A resumable iterator of batches; `tokens` counts the tokens it has yielded so far."""

    @property
    def tokens(self) -> int:
        """Tokens yielded so far."""
        ...

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]:
        """Return where the source stands: plain values and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` says, so that the same batches follow."""
        ...


@dataclass
class Run:
    """All that training changes; `step` counts completed optimizer steps."""

    folder: Path
    model: Transformer
    optimizer: Optimizer
    schedule: Schedule
    source: Source
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return everything a resumed run needs to continue bit for bit."""
        trainable = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        return {
            "model": {name: value.detach() for name, value in trainable.items()},
            "optimizer": self.optimizer.state_dict(),
            "source": self.source.state_dict(),
            "random": torch.get_rng_state(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back.

        Raises:
            CheckpointError: it is not the state of this model's trainable weights.
        """
        parameters = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        if state["model"].keys() != parameters.keys():
            raise CheckpointError(
                f"the checkpoint holds {len(state['model'])} trained weights, this stage trains {len(parameters)}: "
                "it belongs to another version of ludus; start the stage again"
            )
        with torch.no_grad():
            for name, value in state["model"].items():
                parameters[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.source.load_state_dict(state["source"])
        torch.set_rng_state(state["random"])
        self.step = state["step"]


Hook = Callable[[Run, Metrics], None]


def train(
    run: Run,
    objective: Objective,
    *,
    steps: int,
    accumulate: int = 1,
    clip: float = 1.0,
    mesh: Mesh,
    hooks: Iterable[Hook] = (),
) -> None:
    """Update `run` until `steps` steps are done, calling each hook after each step with the means over its units.

    Raises:
        DataError: a step's batches hold nothing to learn from.
    """
    hooks = tuple(hooks)
    run.model.train()
    while run.step < steps:
        run.optimizer.set_rate(run.schedule(run.step))
        batches = list(islice(run.source, accumulate))
        total = mesh.sum(sum(batch.weight for batch in batches))
        if total == 0:
            raise DataError(f"step {run.step} has no prediction of non-zero weight; look at the loss mask of the data")
        metrics: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            with mesh.gradient_sync(run.model, on=index == len(batches) - 1):
                sums = objective(run.model, batch)
                (sums["loss"] / total).backward()
            metrics = {name: metrics.get(name, 0.0) + value.detach() for name, value in sums.items()}
        norm = mesh.clip_(run.model, clip)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.step += 1
        means = {name: mesh.sum(value) / total for name, value in metrics.items()} | {"gradient_norm": float(norm)}
        for hook in hooks:
            hook(run, means)
