"""A small run with everything that keeps it alive, over data in which chosen batches are broken or spike."""

import dataclasses
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ludus.data.batch import Batch
from ludus.data.shards import TokenShards
from ludus.data.sources import pretraining
from ludus.learning import hooks, loop
from ludus.learning.averaging import Average
from ludus.learning.guard import Guard
from ludus.learning.guard_settings import RecoverySettings, SpikeSettings
from ludus.learning.loop import Metrics, Run
from ludus.learning.objectives.next_token import next_token
from ludus.learning.recovery import Recovery, guarded
from ludus.learning.saver import Saver
from ludus.learning.stopping import Stopping
from ludus.model.settings import Architecture
from ludus.model.transformer import build
from ludus.optim import groups
from ludus.optim.schedules import warmup
from ludus.optim.settings import AdamWSettings
from ludus.parallel.mesh import Mesh
from ludus.runs.metrics import MetricsLog

SHAPE = Architecture(
    vocabulary=61, layers=1, width=32, heads=2, kv_heads=2, head_dim=16, hidden=48, context=16, dropout=0.1
)


def text(seed: int, length: int = 6000) -> TokenShards:
    """Return tokens of which each depends on the one before, in documents of a hundred."""
    draw = np.random.default_rng(seed)
    tokens = np.cumsum(draw.integers(1, 5, length)) % 60
    return TokenShards(tokens.astype(np.uint16), np.arange(0, length + 1, 100), length)


class Troubled:
    """A source whose batches of some numbers are no numbers, and of others ten times as heavy as they say."""

    def __init__(self, broken: Collection[int] = (), spikes: Collection[int] = ()) -> None:
        self.inner = pretraining(text(0), context=16, rows=4, pad_token=60, seed=1)
        self.broken, self.spikes, self.number = set(broken), set(spikes), 0

    @property
    def tokens(self) -> int:
        return self.inner.tokens

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch, number = next(self.inner), self.number
        self.number += 1
        factor = float("nan") if number in self.broken else 10.0 if number in self.spikes else 1.0
        return batch if factor == 1.0 else dataclasses.replace(batch, weights=batch.weights * factor)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.number = state["number"]


def fresh(folder: Path, source: Troubled, *, rate: float = 0.01, window: int = 128) -> Run:
    """Make a run that has not begun."""
    model = build(SHAPE, seed=0)
    optimizer = groups.build(model.named_parameters(), AdamWSettings(learning_rate=rate))
    torch.manual_seed(7)
    return Run(folder, model, optimizer, warmup(10), source, guard=Guard(spike=SpikeSettings(window=window)))


def train(run: Run, *, steps: int, after: list[hooks.Hook]) -> None:
    """Train in the one loop."""
    loop.train(run, next_token, steps=steps, mesh=Mesh(), hooks=after)


class Life:
    """One process's life of a run in `folder`: checkpoints beside the training, an average, patience, recovery."""

    def __init__(
        self,
        folder: Path,
        *,
        broken: Collection[int] = (),
        spikes: Collection[int] = (),
        every: int = 4,
        window: int = 16,
        patience: int | None = None,
        least: float = 0.001,
        wavering: float = 0.0,
        recovery: RecoverySettings | None = None,
    ) -> None:
        self.folder, self.every, self.wavering = folder, every, wavering
        self.run = run = fresh(folder, Troubled(broken, spikes), window=window)
        self.log = MetricsLog(folder / "metrics.jsonl")
        self.saver = Saver(folder / "checkpoints", keep=2, metric="validation_loss")
        self.saving = hooks.Saving(self.saver, self.log)
        self.average = Average(run.model, decay=0.9)
        self.stopping = Stopping(run, patience=patience, least=least)
        self.recovery = Recovery(
            run.guard,
            folder=folder / "checkpoints",
            events=folder / "events.jsonl",
            logs=[self.log],
            saver=self.saver,
            settings=recovery or RecoverySettings(after=3),
        )
        run.keeps = {"average": self.average, "stopping": self.stopping, "recovery": self.recovery}

    def live(self, steps: int) -> bool:
        """Train to the end, from the newest checkpoint if there is one; return whether there was."""
        held_out = list(islice(pretraining(text(1, 800), context=16, rows=4, pad_token=60, seed=0), 2))

        def validate(run: Run, metrics: Metrics) -> None:
            with self.average.weights(run.model):
                loss = hooks.mean_loss(run.model, next_token, held_out)
            metrics["validation_loss"] = loss + self.wavering * ((2 * run.step // self.every + 1) % 5)

        resumed = hooks.resume(self.run, self.folder / "checkpoints", self.log)
        after = [
            hooks.every(self.every, validate),
            self.stopping,
            hooks.log(self.log),
            self.stopping.when_better(self._save),
            hooks.every(2 * self.every, self._save, last=steps),
        ]
        average: hooks.Hook = lambda run, metrics: self.average.update()  # noqa: E731
        with self.saver:
            train(self.run, steps=steps, after=[guarded(self.recovery, [average, *after])])
            self.saving.wait()
        return resumed

    def _save(self, run: Run, metrics: Metrics) -> None:
        """Save, and write down that it was asked for, which a kill does not undo."""
        with (self.folder / "saved.txt").open("a") as file:
            file.write(f"{run.step}\n")
        self.saving(run, metrics)
