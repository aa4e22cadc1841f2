"""What happens after a step: hooks `(run, metrics) -> None`, called in the order given.

A hook may add to the metrics, which later hooks see; so the log comes after whatever measures, and the checkpoint after
the log: a checkpoint acknowledges the lines before it.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from ludus.base.console import Meter, say
from ludus.base.errors import DataError, DiskFull
from ludus.data.batch import Batch
from ludus.learning import checkpoints
from ludus.learning.interruption import Asked, Interrupted
from ludus.learning.loop import Hook, Metrics, Objective, Run
from ludus.learning.saver import Saver
from ludus.model.transformer import Transformer
from ludus.runs.metrics import MetricsLog, read

NATS_PER_BIT = 0.6931471805599453


def finite(run: Run, metrics: Metrics) -> None:
    """Raise DataError once the loss or the gradient is no number; first of all hooks, so that it is never saved."""
    if not math.isfinite(metrics["loss"]) or not math.isfinite(metrics["gradient_norm"]):
        raise DataError(
            f"step {run.step}: loss {metrics['loss']}, gradient norm {metrics['gradient_norm']}; nothing of this step "
            "was saved: set a lower learning rate for the stage, or precision=float32, and run it again"
        )


def every(steps: int, hook: Hook, *, last: int | None = None) -> Hook:
    """Call `hook` after each `steps` steps, and after step number `last`."""

    def sometimes(run: Run, metrics: Metrics) -> None:
        if run.step % steps == 0 or run.step == last:
            hook(run, metrics)

    return sometimes


def validate(objective: Objective, batches: Callable[[], Iterable[Batch]], *, bytes_per_unit: float | None) -> Hook:
    """Add `validation_loss`, in nats a unit, and `bits_per_byte` where a unit stands for a number of bytes."""

    def hook(run: Run, metrics: Metrics) -> None:
        loss = mean_loss(run.model, objective, batches())
        metrics["validation_loss"] = loss
        if bytes_per_unit:
            metrics["bits_per_byte"] = loss / NATS_PER_BIT / bytes_per_unit

    return hook


@torch.no_grad()
def mean_loss(model: Transformer, objective: Objective, batches: Iterable[Batch]) -> float:
    """Return the objective's mean over batches, without dropout and without gradients."""
    training = model.training
    model.eval()
    total = weight = 0.0
    device = model.embed_tokens.weight.device
    for batch in batches:
        total += float(objective(model, batch.to(device))["loss"])
        weight += batch.weight
    model.train(training)
    return total / weight


def log(target: MetricsLog) -> Hook:
    """Write a line a step: the step, its rate, the metrics and whatever the source says of its last batch.

    `seconds` counts the time spent training, that of earlier processes included.
    """
    earlier = read(target.path)
    begun = time.monotonic() - (earlier[-1].get("seconds", 0.0) if earlier else 0.0)

    def hook(run: Run, metrics: Metrics) -> None:
        facts = {"step": run.step, "learning_rate_factor": run.schedule(run.step - 1), "tokens": run.source.tokens}
        metrics |= getattr(run.source, "metrics", {})
        target.append(facts | metrics | {"seconds": round(time.monotonic() - begun, 3)})

    return hook


def checkpoint(folder: Path, target: MetricsLog, *, keep: int) -> Hook:
    """Save the whole run, once a step; a full disk costs this checkpoint, never an older one."""
    saved = 0

    def hook(run: Run, metrics: Metrics) -> None:
        nonlocal saved
        if saved == run.step:
            return
        target.sync()
        try:
            checkpoints.save(folder, run.step, run.state_dict(), keep=keep)
            saved = run.step
        except DiskFull as problem:
            say(f"warning: checkpoint of step {run.step} not saved: {problem}")

    return hook


class Saving:
    """Save the whole run, once a step, while training goes on; the log is on the disk before the checkpoint is.

    A full disk costs this checkpoint, never an older one, and is said at the next save or at the end.
    """

    def __init__(
        self, saver: Saver, target: MetricsLog, *, written: Callable[[int], object] = lambda tokens: None
    ) -> None:
        """`written` is called in the writing thread with the tokens seen, once a checkpoint is on the disk."""
        self.saver, self.target, self.written = saver, target, written
        self._saved = 0

    def __call__(self, run: Run, metrics: Metrics) -> None:
        """Copy the state and let it be written."""
        if self._saved == run.step:
            return
        self._report(lambda: self.saver.wait(run.step))
        tokens = run.source.tokens
        self.saver.save(
            run.step,
            run.state_dict(),
            metrics=metrics,
            before=self.target.sync,
            after=lambda: self.written(tokens),
        )
        self._saved = run.step

    def wait(self) -> None:
        """Return when the last checkpoint is on the disk, or it is said why it is not."""
        self._report(self.saver.wait)

    def _report(self, look: Callable[[], None]) -> None:
        try:
            look()
        except DiskFull as problem:
            self._saved = 0
            say(f"warning: checkpoint of step {self.saver.step} not saved: {problem}")


def progress(meter: Meter, show: Sequence[str] = ("loss",)) -> Hook:
    """Move a progress bar."""

    def hook(run: Run, metrics: Metrics) -> None:
        meter.update(run.step, **{name: f"{metrics[name]:.3f}" for name in show if name in metrics})

    return hook


def stop_when(asked: Asked, save: Hook, folder: Path) -> Hook:
    """Save into `folder` and raise `Interrupted` once a signal has asked for it."""

    def hook(run: Run, metrics: Metrics) -> None:
        if asked.number is not None:
            save(run, metrics)
            if isinstance(save, Saving):
                save.wait()
            newest = checkpoints.latest(folder)
            raise Interrupted(asked.number, run.step, checkpoints.step_of(newest) if newest else 0)

    return hook


def resume(run: Run, folder: Path, target: MetricsLog) -> bool:
    """Continue from the newest checkpoint, dropping what was logged after it; say whether there was one."""
    newest = checkpoints.latest(folder)
    if newest is None:
        target.truncate(0)
        return False
    _, state = checkpoints.load(newest)
    run.load_state_dict(state)
    target.truncate(run.step + 1)
    checkpoints.mark_best(folder)
    return True
