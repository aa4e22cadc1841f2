"""What a law of scale foretold of a run, written into the run's folder before it ran, and checked when it has ended.

What lives here: the two files, `scaling.json` of a ladder and `prediction.json` of a run. What does not: fitting. The
one idea: a prediction counts only if it was written down first, and is kept beside the outcome whatever that is.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ludus.base.errors import RunError
from ludus.base.files import make_folder, read_json, write_json
from ludus.planning.scaling_law import Law, Point
from ludus.runs import metrics

SCALING, PREDICTION = "scaling.json", "prediction.json"
STAGE = "pretrain"


def write_law(folder: Path, law: Law, points: Sequence[Point], names: Sequence[str]) -> Path:
    """Write a ladder's fit, with the runs it was made of."""
    runs = [{"name": name, **point._asdict()} for name, point in zip(names, points, strict=True)]
    write_json(folder / SCALING, law.as_json() | {"runs": runs})
    return folder / SCALING


def read_law(folder: Path) -> tuple[Law, list[Point]]:
    """Read a ladder's fit back. Raises RunError where there is none."""
    file = folder / SCALING
    content = read_json(file, RunError)
    try:
        points = [Point(run["parameters"], run["tokens"], run["loss"]) for run in content["runs"]]
        return Law.from_json(content), points
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{file} is damaged; make it again with `ludus scaling`") from None


def record(folder: Path, prediction: Mapping[str, Any], *, law: Path, settings: Sequence[str]) -> Path:
    """Write what is foretold of the run that will be made in `folder`.

    Raises:
        RunError: the run has been trained already, so that nothing about it can be foretold.
    """
    if final_loss(folder) is not None:
        raise RunError(f"{folder} has been trained already; what is known cannot be foretold: name another --folder")
    make_folder(folder)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / PREDICTION, {**prediction, "law": str(law), "settings": list(settings), "made": when})
    return folder / PREDICTION


def final_loss(folder: Path) -> float | None:
    """Return the validation loss a run ended with, None where it has none yet."""
    records = metrics.read(folder / STAGE / "metrics.jsonl")
    found = [each["validation_loss"] for each in records if "validation_loss" in each]
    return float(found[-1]) if found else None


def check_prediction(folder: Path) -> str | None:
    """Hold what was foretold of a run against how it ended, keep both, and say it in a line; None if nothing was.

    To be called when pretraining has ended. A loss that is no number counts as a miss.
    """
    file = Path(folder) / PREDICTION
    loss = final_loss(Path(folder)) if file.is_file() else None
    if loss is None:
        return None
    told = read_json(file, RunError)
    try:
        expected, low, high, share = (float(told[name]) for name in ("loss", "low", "high", "share"))
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{file} is damaged; make it again with `ludus scaling ... predict=...`") from None
    inside = math.isfinite(loss) and low <= loss <= high
    outcome = {"loss": loss, "inside": inside, "error": loss / expected - 1}
    write_json(file, told | {"outcome": outcome})
    verdict = "inside" if inside else "OUTSIDE"
    return (
        f"the law of scale foretold a loss of {expected:.4f} ({low:.4f} to {high:.4f} in {share:.0%} of runs); "
        f"it is {loss:.4f}, {verdict} the interval, {loss / expected - 1:+.1%}"
    )
