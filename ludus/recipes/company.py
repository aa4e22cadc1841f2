"""What goes along with a training: everything that watches, writes down, saves and samples, in the order it must.

The loop knows none of it. The order matters in a few places: recovery looks first, a validation comes before those who
read it, the log before the checkpoint that acknowledges its lines.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import torch

from ludus.adapters import virtual
from ludus.base.console import Meter, say
from ludus.base.errors import DiskFull
from ludus.base.seeds import derive_seed
from ludus.generation.engine import Sampling, generate
from ludus.learning import hooks, measures, trackers
from ludus.learning.averaging import Average
from ludus.learning.interruption import Asked
from ludus.learning.loop import Hook, Metrics, Objective, Run, Source
from ludus.learning.recovery import Recovery, guarded
from ludus.learning.saver import Saver
from ludus.learning.settings import TrainingSettings
from ludus.learning.stopping import Stopping, restore_best
from ludus.model.cost import flops_per_token
from ludus.model.experts import Balance
from ludus.model.transformer import Transformer
from ludus.parallel import mesh
from ludus.planning.machine import this_machine
from ludus.recipes.place import Place
from ludus.runs.manifest import Manifest
from ludus.runs.metrics import MetricsLog
from ludus.text.tokenizer import Tokenizer

WORTH_MEASURING = 1e13  # operations of a run: a minute or so of a laptop's processor


@dataclass(frozen=True)
class Fit:
    """One training stage, ready to run: what is particular to it. `prompts` are continued at each sample."""

    name: str
    settings: TrainingSettings
    model: Transformer
    tokenizer: Tokenizer
    objective: Objective
    source: Source
    prompts: Mapping[str, list[int]]
    sampling: Sampling
    validation: hooks.Hook | None = None
    tuned: bool = False  # whether the fastest settings for its batches are looked for; rollouts are too dear to peek at
    show: tuple[str, ...] = ("loss",)


class Company:
    """The hooks of one run, and what they keep. `resume` before `hooks`, `end` when training is over."""

    def __init__(self, place: Place, manifest: Manifest, work: Fit, run: Run, saver: Saver) -> None:
        self.place, self.manifest, self.work, self.run = place, manifest, work, run
        self.settings, self.checkpoints = work.settings, run.folder / "checkpoints"
        self.metrics = MetricsLog(run.folder / "metrics.jsonl")
        self.samples = MetricsLog(run.folder / "samples.jsonl")
        self.saving = hooks.Saving(saver, self.metrics, written=self._write_down_the_cost)
        self.recovery = Recovery(
            run.guard,
            folder=self.checkpoints,
            events=run.folder / "events.jsonl",
            logs=(self.metrics, self.samples),
            saver=saver,
            settings=self.settings.recovery,
            stage=work.name,
        )
        stopping = self.settings.stopping
        self.stopping = Stopping(run, patience=stopping.patience, least=stopping.least)
        average = self.settings.average
        wanted = average.decay is not None or average.last_steps is not None
        self.average = (
            Average(run.model, decay=average.decay, last_steps=average.last_steps, every=average.every)
            if wanted
            else None
        )
        run.keeps |= {"recovery": self.recovery, "stopping": self.stopping}
        run.keeps |= {"average": self.average} if self.average else {}

    def resume(self) -> bool:
        """Go on from the newest checkpoint, if there is one; drop what was written down after it."""
        resumed = hooks.resume(self.run, self.checkpoints, self.metrics)
        self.samples.truncate(self.run.step + 1 if resumed else 0)
        return resumed

    def hooks(self, meter: Meter, asked: Asked) -> list[Hook]:
        """Return what is called after each step."""
        settings, last = self.settings, self.settings.steps
        save = hooks.every(settings.checkpoint_every or 1, self.saving, last=last)
        found: list[Hook | None] = [
            self._balance() if self.work.model.shape.experts else None,
            self._follow if self.average else None,
            measures.rates,
            measures.update_ratio(self.run, settings.measure_every),
            measures.speed(flops_per_token=self._flops(), peak_flops=self._peak()),
            measures.memory,
            hooks.every(settings.validate_every or 1, self._validate, last=last) if self.work.validation else None,
            self.stopping,
            hooks.log(self.metrics),
            *self._trackers(),
            hooks.every(settings.sample_every or 1, self._sample, last=last),
            save,
            self.stopping.when_better(self.saving) if settings.stopping.best else None,
            hooks.progress(meter, self.work.show),
            hooks.stop_when(asked, self.saving, self.checkpoints),
        ]
        return [guarded(self.recovery, [hook for hook in found if hook])]

    def end(self) -> None:
        """Wait for the last checkpoint, and take the best weights back where that was asked for."""
        self.saving.wait()
        step = restore_best(self.run, self.checkpoints) if self.settings.stopping.best else None
        if step is not None and step != self.run.step:
            say(f"  the weights are those of step {step}, the best validation")

    @contextmanager
    def final_weights(self) -> Iterator[None]:
        """Put the weights that are to be kept into the model: their average, where one was taken."""
        if self.average is None:
            yield
            return
        with self.average.weights(self.run.model):
            yield

    def _balance(self) -> Hook:
        """Keep the experts of a mixture equally busy; their biases are saved with the weights."""
        experts = self.work.model.shape.experts
        assert experts is not None
        balance = Balance(self.work.model, experts.balance_rate, mesh.current().total)
        return lambda run, metrics: metrics.update(balance())

    def _follow(self, run: Run, metrics: Metrics) -> None:
        assert self.average is not None
        self.average.update()

    def _validate(self, run: Run, metrics: Metrics) -> None:
        assert self.work.validation is not None
        with self.final_weights():
            self.work.validation(run, metrics)

    def _sample(self, run: Run, metrics: Metrics) -> None:
        """Continue the prompts, greedily or with a generator of its own, so that sampling never disturbs training."""
        work, generator = self.work, torch.Generator(self.run.device).manual_seed(derive_seed(0, "samples"))
        with self.final_weights():
            completions = generate(run.model, list(work.prompts.values()), self._sampling(), generator=generator)
        for prompt, completion in zip(work.prompts, completions, strict=True):
            text = completion.text(work.tokenizer)
            self.samples.append({"step": run.step, "prompt": prompt, "text": text})

    def _sampling(self) -> Sampling:
        """Return how to sample; a model that has learned positions has no more of them than its context."""
        shape, wanted = self.work.model.shape, self.work.sampling
        if shape.position != "learned" or not self.work.prompts:
            return wanted
        room = virtual.room(self.work.model) - max(map(len, self.work.prompts.values()))
        return replace(wanted, max_new_tokens=max(1, min(wanted.max_new_tokens, room)))

    def _flops(self) -> float:
        return float(flops_per_token(self.work.model.shape, self.place.recipe.data.context))

    def _peak(self) -> float | None:
        """Return what this machine multiplies at best, measured where the run is long enough to be worth a second."""
        recipe, settings = self.place.recipe, self.settings
        rows = getattr(settings, "rows", 1) * settings.accumulate * settings.steps
        if self.run.device.type != "cpu" or rows * recipe.data.context * self._flops() < WORTH_MEASURING:
            return None
        device, _ = this_machine(recipe.threads or 1)
        return device.rate(str(self.run.model.precision).removeprefix("torch."))

    def _trackers(self) -> list[Hook]:
        name = f"{self.place.folder.name}/{self.work.name}"
        settings = self.place.recipe.model_dump(mode="json")
        return trackers.hooks(
            self.place.recipe.trackers, folder=self.run.folder, project="ludus", name=name, settings=settings
        )

    def _write_down_the_cost(self, tokens: int) -> None:
        """Keep what the stage has cost so far; if the disk is full, saving has said so."""
        with suppress(DiskFull):
            self.manifest.update(tokens=tokens)
