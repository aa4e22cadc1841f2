"""Stop when validation no longer improves, and end with the weights that were best.

Which checkpoint is the best is written in the checkpoints themselves (see `checkpoints.best`); here are the patience,
which is part of the run's state, and the way back to the best weights.
"""

import math
from pathlib import Path
from typing import Any

from ludus.learning import checkpoints
from ludus.learning.loop import Hook, Metrics, Run
from ludus.learning.recovery import go_back


class Stopping:
    """Sets `run.stopped`, a reason, after `patience` validations without an improvement of at least `least`.

    A hook that comes after the validation and before the checkpoint; steps without the metric say nothing. Part of
    the run's state (`run.keeps`). Without patience it only watches, for `when_better`.
    """

    def __init__(self, run: Run, *, patience: int | None, least: float = 0.0, metric: str = "validation_loss") -> None:
        self.run, self.patience, self.least, self.metric = run, patience, least, metric
        self.best, self.best_step, self.waited = math.inf, 0, 0
        self._lowest = math.inf  # the best without regard to `least`, as checkpoints count it
        self._lower_at = 0

    def __call__(self, run: Run, metrics: Metrics) -> None:
        """Look at a validation; one that is no number is no improvement."""
        if self.metric not in metrics:
            return
        value = float(metrics[self.metric])
        if value < self._lowest:
            self._lowest, self._lower_at = value, run.step
        if value < self.best - self.least:
            self.best, self.best_step, self.waited = value, run.step, 0
        else:
            self.waited += 1
        self._decide()

    def when_better(self, save: Hook) -> Hook:
        """Call `save` after each step whose validation was the best so far."""

        def hook(run: Run, metrics: Metrics) -> None:
            if self.metric in metrics and self._lower_at == run.step:
                save(run, metrics)

        return hook

    def state_dict(self) -> dict[str, Any]:
        """Return the best validation, its step and the validations since."""
        return {
            "best": self.best,
            "best_step": self.best_step,
            "waited": self.waited,
            "lowest": self._lowest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on waiting; a run whose patience was at its end is stopped at once."""
        self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]
        self._lowest = state["lowest"]
        self._decide()

    def _decide(self) -> None:
        over = self.patience is not None and self.waited >= self.patience
        self.run.stopped = (
            f"{self.metric} has not improved on {self.best:.4g} (step {self.best_step}) in {self.waited} validations"
            if over
            else None
        )


def restore_best(run: Run, folder: Path) -> int | None:
    """Give `run` the weights, averages and all, of the best checkpoint in `folder`; return its step, None without one.

    The step and the source stay: they say what the run has cost. For the end of a run; training on from here is
    something else than it was.
    """
    found = checkpoints.best(folder)
    if found is None:
        return None
    stopped = run.stopped
    go_back(run, found[0], but=["source", "step"])
    run.stopped = stopped
    return checkpoints.step_of(found[0])
