"""What follows from the guard's verdicts: each is told and logged, and many in a row take the run back.

Going back means the weights, the optimizer and all that the newest checkpoint holds, but for the source, which stays
where it stands: the data that came before is stepped past. A rollback is an event of the run like any other, so a run
that is killed after it goes through it again and ends the same.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ludus.base.console import say
from ludus.base.errors import DataError
from ludus.base.files import atomic_write
from ludus.learning import checkpoints
from ludus.learning.guard import Guard
from ludus.learning.guard_settings import RecoverySettings
from ludus.learning.loop import Hook, Metrics, Run
from ludus.learning.saver import Saver
from ludus.runs.metrics import MetricsLog, read


def guarded(recovery: "Recovery", hooks: Sequence[Hook]) -> Hook:
    """Let `recovery` look first; call the other hooks unless it has taken the run back to an earlier step."""

    def hook(run: Run, metrics: Metrics) -> None:
        if recovery(run, metrics):
            for each in hooks:
                each(run, metrics)

    return hook


def go_back(run: Run, path: Path, *, but: Sequence[str]) -> None:
    """Put `run` where the checkpoint at `path` left it, but for the named parts, which stay as they are."""
    _, state = checkpoints.load(path)
    now = run.state_dict()
    run.load_state_dict(state | {part: now[part] for part in but})


class Recovery:
    """Logs what the guard has skipped to `events`, and goes back after too many skips in a row.

    It is part of the run's state (`run.keeps`), so that a resumed run drops the events that are still to come.
    `logs` are cut back together with the run; `stage` names the settings that are recommended.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        folder: Path,
        events: Path,
        logs: Sequence[MetricsLog] = (),
        saver: Saver | None = None,
        settings: RecoverySettings | None = None,
        stage: str = "pretrain",
    ) -> None:
        """`folder` is that of the checkpoints, which `saver` may be writing."""
        self.guard, self.folder, self.logs, self.saver, self.stage = guard, folder, logs, saver, stage
        self.settings = settings or RecoverySettings()
        self.events = MetricsLog(events)
        self._told, self._tries, self._furthest = (
            0,
            0,
            0,
        )  # events logged, rollbacks in vain, the step they set out from
        self._stale = True  # the log may hold events after the state this process has begun from

    def __call__(self, run: Run, metrics: Metrics) -> bool:
        """Look at the step that is done; return False if the run was taken back to an earlier one.

        Raise DataError when going back has not helped, or when there is nothing to go back to.
        """
        if self._stale:
            self._cut()
        verdict = self.guard.verdict()
        if verdict in ("ok", "overflow"):
            if verdict == "ok" and run.step > self._furthest:
                self._tries = 0
            return True
        metrics["skipped"] = 1.0
        self._tell(run.step, verdict, metrics)
        if int(self.guard.skipped_in_a_row) < self.settings.after:
            return True
        self._roll_back(run, metrics)
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return how many events there were, and how often the run went back in vain, from which step."""
        return {"events": self._told, "tries": self._tries, "furthest": self._furthest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; later events in the log are dropped before the next is written."""
        self._told, self._tries, self._furthest = state["events"], state["tries"], state["furthest"]
        self._stale = True

    def _tell(self, step: int, verdict: str, metrics: Metrics) -> None:
        loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
        usual_loss, usual_norm = self.guard.usual()
        cause, advice = self._cause(verdict, loss, norm)
        self._log(
            {
                "step": step,
                "kind": verdict,
                "loss": _figure(loss),
                "gradient_norm": _figure(norm),
                "usual": {"loss": _figure(usual_loss), "gradient_norm": _figure(usual_norm)},
                "cause": cause,
                "advice": advice,
            }
        )
        usual = "" if math.isnan(usual_loss) else f" (usual {usual_loss:.3g} and {usual_norm:.3g})"
        say(f"  step {step} skipped: loss {loss:.3g}, gradient norm {norm:.3g}{usual}: {cause}; {advice}")

    def _cause(self, verdict: str, loss: float, norm: float) -> tuple[str, str]:
        """Return the likely cause of a skip and the setting to change."""
        lower = f"set a lower {self.stage}.optimizer.learning_rate"
        row = int(self.guard.skipped_in_a_row)
        if row > 1 and verdict == "non-finite":
            return f"skip {row} in a row: a stretch of broken data, or weights too large for the precision", lower
        if row > 1:
            return f"skip {row} in a row: the model has diverged, or the data has changed its kind", lower
        if verdict == "spike":
            if loss > self.guard.limits()[0]:
                return "a batch unlike those before it, or too large a step just before", f"if it recurs, {lower}"
            return (
                "a gradient far steeper than the loss tells: rare tokens, or too large a step",
                f"if it recurs, {lower}",
            )
        if math.isfinite(loss):
            return "the gradient is beyond the range of the precision", f"set precision=float32, or {lower}"
        return "a batch the model has no finite loss on", "look at its data; if it recurs, set precision=float32"

    def _roll_back(self, run: Run, metrics: Metrics) -> None:
        if self.saver:
            self.saver.wait()
        newest = checkpoints.latest(self.folder)
        said = f"step {run.step}: {self.settings.after} updates in a row could not be used (loss {metrics['loss']:.3g})"
        advice = (
            f"set a lower {self.stage}.optimizer.learning_rate or precision=float32; if the data has changed its kind, "
            f"set {self.stage}.spike.judge=false; then run it again"
        )
        if newest is None:
            raise DataError(f"{said}, and there is no checkpoint yet to go back to; {advice}")
        if self._tries >= self.settings.tries:
            raise DataError(f"{said}, and going back {self._tries} times has not helped; {advice}")
        at, mine, skips = run.step, self.state_dict(), self.guard.skips
        go_back(run, newest, but=["source"])
        self.load_state_dict(mine)
        self._stale, self.guard.skips = False, skips
        self.guard.calm()
        self._tries, self._furthest = self._tries + 1, max(self._furthest, at)
        for log in self.logs:
            log.truncate(run.step + 1)
        cause = f"{self.settings.after} skips in a row; back to step {run.step}, past the data since"
        self._log(
            {"step": at, "kind": "rollback", "to": run.step, "try": self._tries, "cause": cause, "advice": advice}
        )
        say(f"  {said}: back to step {run.step}, past the data since; if it recurs, {advice}")

    def _log(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self._told += 1

    def _cut(self) -> None:
        """Drop events that a process before this one has logged after the state this one goes on from."""
        self._stale = False
        known = read(self.events.path)
        if len(known) > self._told:
            kept = "".join(json.dumps(event) + "\n" for event in known[: self._told])
            atomic_write(self.events.path, kept)


def _figure(value: float) -> float | str:
    """Return a figure as JSON knows it; what is no number by its name."""
    return value if math.isfinite(value) else str(value)
