"""Everything a report needs from a run folder, read once, with whatever is missing left out.

What lives here: the run folder as one value, and forgiving access to it. What does not: what the page makes of it.
The one idea: a report is also wanted of a run that was interrupted, so a missing file is no error, and a damaged one
is a line in `problems` that the page shows.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ludus.base.errors import LudusError, RunError
from ludus.base.files import read_json
from ludus.evaluation.report.markup import Markup, element, join

CONTROL = "dpo-control"
TITLES = {
    "corpus": "Corpus",
    "tokenizer": "Tokenizer",
    "pretrain": "Pretraining",
    "exercises": "Exercises",
    "sft": "Fine-tuning",
    "reward": "Reward model",
    "dpo": "Preferences",
    "dpo-control": "Control",
    "ppo": "PPO",
    "grpo": "Reinforcement",
    "evaluate": "Evaluation",
    "compare": "Comparison",
}
SHORT = {"sft": "SFT", "dpo": "DPO", "dpo-control": "likelihood only", "grpo": "GRPO"}


@dataclass(frozen=True)
class Run:
    """A run folder in memory. Every mapping is by stage and holds only the stages that left something."""

    folder: Path
    recipe: str = ""
    stages: list[str] = field(default_factory=list)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    certificates: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    questions: int = 0
    corpus: dict[str, Any] = field(default_factory=dict)
    tokenizers: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        """Return the folder as a command would name it: `runs/NAME` where it stands in a folder of runs."""
        return f"runs/{self.folder.name}" if self.folder.parent.name == "runs" else self.folder.as_posix()

    @property
    def scores(self) -> list[dict[str, Any]]:
        """Return the evaluated stages in order, without the control."""
        return [result for result in self.results if result.get("stage") != CONTROL]

    def name(self, stage: str) -> Markup:
        """Return a stage's name with the short form that the tables of scores use."""
        title, label = TITLES.get(stage, stage), self.label(stage)
        return join(title, element("small", label) if label != title else None)

    def label(self, stage: str) -> str:
        """Return what the reader knows a stage by: the evaluation's label where it has one."""
        named = {str(result.get("stage")): result.get("label") for result in self.results}
        return str(named.get(stage) or SHORT.get(stage) or TITLES.get(stage) or stage)


def read_run(folder: Path) -> Run:
    """Read a run folder; raise RunError when it is not one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder} is not a run folder; give the folder that `ludus run` wrote, such as runs/quickstart")
    problems: list[str] = []
    head = _json(folder / "run.json", problems)
    stages = _stages(folder, head.get("stages"))
    homes = {stage: folder / stage for stage in stages}
    if not (folder / "evaluate").is_dir():
        homes["evaluate"] = folder / "evaluation"
    evaluation = _json(folder / "evaluation" / "results.json", problems)
    recipe = _json(folder / "recipe.json", problems)
    return Run(
        folder=folder,
        recipe=str(head.get("recipe") or ""),
        stages=stages,
        manifests=_present(stages, lambda stage: _json(homes[stage] / "manifest.json", problems)),
        metrics=_present(stages, lambda stage: _lines(homes[stage] / "metrics.jsonl", problems)),
        samples=_present(stages, lambda stage: _lines(homes[stage] / "samples.jsonl", problems)),
        events=_present(stages, lambda stage: _lines(homes[stage] / "events.jsonl", problems)),
        answers=_present(stages, lambda stage: _lines(folder / "evaluation" / "answers" / f"{stage}.jsonl", problems)),
        certificates=_present(stages, lambda stage: _json(homes[stage] / "merge.json", problems)),
        results=_dicts(evaluation.get("stages")),
        questions=int(number(evaluation.get("questions")) or 0),
        corpus=_json(folder / "corpus" / "report.json", problems),
        tokenizers=_dicts(_json(folder / "tokenizer" / "report.json", problems).get("rows")),
        settings=flatten(recipe.get("settings") or {}),
        origins={str(key): str(value) for key, value in (recipe.get("origins") or {}).items()},
        problems=problems,
    )


def number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def column(records: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return a metric as (step, value) pairs; a value that is not finite stays in, for the chart to count."""
    pairs = ((number(record.get("step")), record.get(name)) for record in records)
    return [
        (step, float(value))
        for step, value in pairs
        if step is not None and isinstance(value, int | float) and not isinstance(value, bool)
    ]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Turn nested settings into dotted keys; an empty mapping and a list stay values."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree} if prefix else {}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in flatten(branch, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _stages(folder: Path, planned: Any) -> list[str]:
    """Return the planned stages and those found on disk, in the order a run has them."""
    found = sorted(path.parent.name for path in folder.glob("*/manifest.json") if path.parent.name != "evaluation")
    names = list(dict.fromkeys([*map(str, planned if isinstance(planned, list) else []), *found]))
    order = {name: place for place, name in enumerate(TITLES)}
    # A stage we have no title for keeps its place in the plan; only known ones are put in order.
    return sorted(names, key=order.__getitem__) if all(name in order for name in names) else names


def _present(stages: list[str], read: Any) -> dict[str, Any]:
    return {stage: content for stage in stages if (content := read(stage))}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except LudusError as error:
        problems.append(str(error))
        return {}
    if isinstance(value, dict):
        return value
    problems.append(f"{path} holds no table")
    return {}


def _lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Read JSON lines; a torn or foreign line is left out and counted."""
    if not path.is_file():
        return []
    records, damaged = [], 0
    for line in path.read_text("utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line) if line.strip() else None
        except (json.JSONDecodeError, RecursionError):
            damaged += 1
            continue
        if isinstance(record, dict):
            records.append(record)
        elif record is not None:
            damaged += 1
    if damaged:
        problems.append(f"{path}: {damaged} unreadable {'line' if damaged == 1 else 'lines'} left out")
    return records
