"""What the tests of law 2 share: a stage's outcome, and a run as it was before a stage. See `tiny.yaml` for the run."""

import json
import shutil
from pathlib import Path
from typing import Any

from ludus.base.files import sha256_file
from ludus.learning.measures import OF_THE_MACHINE
from ludus.recipes import chain

RUN = Path("runs/tiny")


def stream(stage: Path) -> tuple[list[dict[str, Any]], str]:
    """Return what a stage has logged: its metrics but for those that tell of the machine, and its samples."""
    records = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    timeless = [{name: value for name, value in record.items() if name not in OF_THE_MACHINE} for record in records]
    return timeless, (stage / "samples.jsonl").read_text()


def outcome(stage: Path) -> tuple[Any, ...]:
    manifest = json.loads((stage / "manifest.json").read_text())
    left = {name: manifest[name] for name in ("status", "fingerprint", "tokens", "summary")}
    return stream(stage), left, sha256_file(stage / "model" / "model.safetensors")


def before(stage: str, finished: Path, folder: Path) -> Path:
    """Copy a run as it was before a stage, and return where that stage will be."""
    later = chain.STAGES.keys() - list(chain.STAGES)[: list(chain.STAGES).index(stage)]
    shutil.copytree(finished, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*later, "evaluation"))
    return folder / RUN / stage
