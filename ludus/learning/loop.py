"""The one loop. Every stage is an objective and a source; nothing here knows which.

A sum is divided once by the global count of loss-bearing units, which is known before the forward pass: neither
micro-batches, nor padding, nor the number of ranks can change the gradient.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ludus.base.errors import CheckpointError, DataError
from ludus.data.batch import Batch
from ludus.learning.clock import Clock
from ludus.learning.guard import Guard
from ludus.model.transformer import Transformer
from ludus.optim.groups import Optimizer
from ludus.optim.schedules import Schedule
from ludus.parallel.mesh import Mesh

Objective = Callable[[Transformer, Batch], Mapping[str, Tensor]]
Metrics = dict[str, float]


class Stateful(Protocol):
    """What can be put into a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: plain values and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        ...


class Source(Stateful, Protocol):
    """A resumable iterator of batches; `tokens` counts the tokens it has yielded so far."""

    @property
    def tokens(self) -> int:
        """Tokens yielded so far."""
        ...

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...


@dataclass
class Run:
    """All that training changes; `step` counts completed optimizer steps.

    `keeps` is what hooks keep from step to step and must not lose: an average of the weights, a patience. A hook ends
    the training by setting `stopped` to the reason.
    """

    folder: Path
    model: Transformer
    optimizer: Optimizer
    schedule: Schedule
    source: Source
    step: int = 0
    guard: Guard = field(default_factory=Guard)
    keeps: dict[str, Stateful] = field(default_factory=dict)
    stopped: str | None = None
    clock: Clock = field(default_factory=Clock)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.embed_tokens.weight.device

    def state_dict(self) -> dict[str, Any]:
        """Return everything a resumed run needs to continue bit for bit."""
        return {
            "model": {name: value.detach() for name, value in _learned(self.model).items()},
            "optimizer": self.optimizer.state_dict(),
            "source": self.source.state_dict(),
            "guard": self.guard.state_dict(),
            "keeps": {name: kept.state_dict() for name, kept in self.keeps.items()},
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back.

        Raises:
            CheckpointError: it is not the state of this model's trainable weights.
        """
        learned = _learned(self.model)
        if state["model"].keys() != learned.keys():
            raise CheckpointError(
                f"the checkpoint holds {len(state['model'])} trained weights, this stage trains {len(learned)}: "
                "it belongs to another version of ludus; start the stage again"
            )
        with torch.no_grad():
            for name, value in state["model"].items():
                learned[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.source.load_state_dict(state["source"])
        self.guard.load_state_dict(state["guard"])
        for name, kept in self.keeps.items():
            kept.load_state_dict(state["keeps"][name])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        self.step = state["step"]


def _learned(model: Transformer) -> dict[str, Tensor]:
    """Return what training changes in a model: trainable weights, and buffers that are saved with them.

    The buffers of a module that says it never `learns`, such as a quantised layer, are left out.
    """
    weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
    kept = model.state_dict(keep_vars=True)
    frozen = tuple(f"{name}." for name, module in model.named_modules() if not getattr(module, "learns", True))
    buffers = {name: value for name, value in model.named_buffers() if name in kept}
    return weights | {name: value for name, value in buffers.items() if not name.startswith(frozen)}


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

    A step whose loss or gradient the guard does not accept changes no weight; it counts as a step.

    Raises:
        DataError: a step's batches hold nothing to learn from.
    """
    hooks = tuple(hooks)
    run.model.train()
    while run.step < steps and run.stopped is None:
        run.clock.lap("hooks")
        run.optimizer.set_rate(run.schedule(run.step))
        batches = [batch.to(run.device) for batch in islice(run.source, accumulate)]
        total = mesh.sum(sum(batch.weight for batch in batches))
        if total == 0:
            raise DataError(f"step {run.step} has no prediction of non-zero weight; look at the loss mask of the data")
        run.clock.lap("data")
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            with mesh.gradient_sync(run.model, on=index == len(batches) - 1):
                found = objective(run.model, batch)
                (found["loss"] * (run.guard.scale / total)).backward()
            sums = {name: sums.get(name, 0.0) + value.detach() for name, value in found.items()}
        run.clock.lap("gradient")
        norm = mesh.clip_(run.model, clip, scale=run.guard.scale)
        run.optimizer.step(skip=run.guard.judge(mesh.total(sums["loss"]) / total, norm))
        run.optimizer.zero_grad()
        run.step += 1
        metrics = {name: value / total for name, value in mesh.sum_all(sums).items()} | {"gradient_norm": float(norm)}
        run.clock.lap("update")
        for hook in hooks:
            hook(run, metrics)
