"""The runs in a folder, as far as a list needs them: state, score, and which models and pages are there.

Everything is read forgivingly, since a run may be in the midst of being written. Names are those found on disk: what a
visitor asks for is looked up among them, and never becomes a path.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ludus.base.errors import LudusError
from ludus.base.files import read_json

ALWAYS = "report"  # a picture of the run, made at its end
CONTROL = "dpo-control"
TAIL_BYTES = 4096


@dataclass(frozen=True)
class Run:
    """One run: `state` is a word and what it is about; `score` is the last model's, as the evaluation wrote it."""

    name: str
    folder: Path
    recipe: str
    state: tuple[str, str]
    started: str = ""
    models: dict[str, Path] = field(default_factory=dict)
    score: dict[str, Any] | None = None

    @property
    def report(self) -> Path:
        """Return where its report lies, if it has one."""
        return self.folder / "report.html"


def scan(folder: Path) -> list[Run]:
    """Return the runs in a folder and in the sweeps in it, the newest first."""
    found = [read(path, path.relative_to(folder).as_posix()) for path in folders(folder)]
    return sorted(found, key=lambda run: (run.started, run.name), reverse=True)


def comparisons(folder: Path) -> dict[str, Path]:
    """Return the pages that compare the runs of a sweep, by the sweep's name."""
    return {path.parent.name: path for path in sorted(folder.glob("*/comparison.html")) if path.is_file()}


def folders(folder: Path) -> Iterator[Path]:
    """Yield the folders that are runs: those in the folder, and those one floor below that belong to a sweep."""
    for file in sorted([*folder.glob("*/run.json"), *folder.glob("*/*/run.json")]):
        if not any(part.startswith(".") for part in file.relative_to(folder).parts):
            yield file.parent


def read(folder: Path, name: str) -> Run:
    """Read what a list shows of a run."""
    head = mapping(folder / "run.json")
    planned = head.get("stages")
    stages = [str(stage) for stage in planned] if isinstance(planned, list) else []
    manifests = {stage: mapping(folder / stage / "manifest.json") for stage in stages}
    results = mapping(folder / "evaluation" / "results.json").get("stages")
    scores = [score for score in results if score.get("stage") != CONTROL] if isinstance(results, list) else []
    models = {stage: folder / stage / "model" for stage in stages}
    return Run(
        name=name,
        folder=folder,
        recipe=str(head.get("recipe") or ""),
        state=state(folder, manifests),
        started=min((str(each["started"]) for each in manifests.values() if each.get("started")), default=""),
        models={stage: path for stage, path in models.items() if describes(path).is_file()},
        score=scores[-1] if scores else None,
    )


def describes(model: Path) -> Path:
    """Return the file that says what a model is: that of an adapter, of a folder, or a model in one file itself."""
    if model.is_file():
        return model
    adapter = model / "adapter_config.json"
    return adapter if adapter.is_file() else model / "config.json"


def state(folder: Path, manifests: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """Say whether a run is complete, running or stopped, and at which stage and step."""
    open_ = [stage for stage, manifest in manifests.items() if manifest.get("status") != "complete" and stage != ALWAYS]
    if not open_:
        return ("complete" if manifests else "empty"), ""
    stage = open_[0]
    settings = manifests[stage].get("settings")
    own = settings.get(stage) if isinstance(settings, dict) else None
    steps = own.get("steps") if isinstance(own, dict) else None
    step = last_record(folder / stage / "metrics.jsonl").get("step")
    where = f"{stage}, step {step:,} of {steps:,}" if isinstance(step, int) and isinstance(steps, int) else stage
    return ("running" if is_held(folder) else "stopped"), where


def is_held(folder: Path) -> bool:
    """Tell whether the process that last held a run lives. Asking the lock itself could keep a run from starting."""
    try:
        os.kill(int((folder / ".lock").read_text("ascii")), 0)
    except PermissionError:
        return True  # somebody else's process
    except (OSError, ValueError, OverflowError):
        return False
    return True


def last_record(path: Path) -> dict[str, Any]:
    """Return the last whole line of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
        record = json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def mapping(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, an empty one if there is none."""
    try:
        value = read_json(path)
    except LudusError:
        return {}
    return value if isinstance(value, dict) else {}
