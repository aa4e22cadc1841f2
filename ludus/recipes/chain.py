"""The chain: which stages a verb needs, which of them are up to date, and running the rest in order.

A stage is up to date when its settings and the hashes of its inputs are those it was made from, and its outputs are as
it left them. A finished stage that has to be made again is set aside first, never overwritten.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ludus.base.console import say
from ludus.base.files import write_json
from ludus.recipes import corpus, dpo, evaluate, exercises, grpo, pretrain, report, sft, tokenizer
from ludus.recipes.place import Place, Stage
from ludus.runs.artefacts import artefact
from ludus.runs.folder import hold
from ludus.runs.manifest import MANIFEST, Manifest, fingerprint

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        corpus.STAGE,
        tokenizer.STAGE,
        pretrain.STAGE,
        exercises.STAGE,
        sft.STAGE,
        dpo.CONTROL,
        dpo.STAGE,
        grpo.STAGE,
        evaluate.STAGE,
        report.STAGE,
    )
}
ALWAYS = ("report",)  # a picture of the folder as it is now


def closure(place: Place, wanted: Sequence[str]) -> list[str]:
    """Return the wanted stages and all they need, in the order of the chain."""
    found: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += STAGES[name].needs(place)
    return [name for name in STAGES if name in found]


def chosen(place: Place, verb: str) -> list[str]:
    """Return the stages of a verb: its own and what it needs, or for `run` those of the recipe."""
    wanted: list[str] = list(place.recipe.stages) if verb == "run" else [verb]
    if "dpo" in wanted and place.recipe.dpo.control:
        wanted.append("dpo-control")
    return closure(place, wanted)


def run(place: Place, verb: str, *, command: Sequence[str] | None = None) -> None:
    """Bring the stages of a verb up to date, holding the run folder against other processes."""
    names = chosen(place, verb)
    command = list(sys.argv if command is None else command)
    with hold(place.folder) as held:
        known = _known_stages(place.folder)
        order = [name for name in STAGES if name in {*known, *names}]
        held.describe(place.recipe.name, order, verb=verb)
        write_json(
            place.folder / "recipe.json",
            {"settings": place.recipe.model_dump(mode="json"), "origins": dict(place.origins), "dropped": []},
        )
        for number, name in enumerate(names, 1):
            _make(place, STAGES[name], f"[{number}/{len(names)}] {name}", command)


def _make(place: Place, stage: Stage, title: str, command: list[str]) -> None:
    folder, settings, inputs = place.stage(stage.name), stage.settings(place.recipe), stage.inputs(place)
    recorded = {name: artefact(path, folder) for name, path in inputs.items()}
    if stage.name not in ALWAYS and _is_current(folder, fingerprint(stage.name, settings, recorded)):
        say(f"{title}: up to date")
        return
    say(title)
    if stage.name not in ALWAYS:
        _set_aside(place, folder, fingerprint(stage.name, settings, recorded))
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest.begin(
        folder,
        stage.name,
        settings=settings,
        origins=_origins_of(place, settings),
        inputs=inputs,
        command=command,
        threads=place.recipe.threads,
    )
    made = stage.make(place, manifest)
    manifest.finish(made.outputs, tokens=made.tokens, summary=made.summary)
    say(f"  {stage.name}: {manifest.wall_seconds:.1f} s, {manifest.peak_memory_bytes / 1e9:.2f} GB at peak")


def _is_current(folder: Path, wanted: str) -> bool:
    return (folder / MANIFEST).is_file() and Manifest.read(folder).is_current(wanted)


def _set_aside(place: Place, folder: Path, wanted: str) -> None:
    """Move a stage that was made otherwise out of the way; an interrupted one of the same making stays, to resume."""
    if not (folder / MANIFEST).is_file():
        return
    before = Manifest.read(folder)
    if before.fingerprint == wanted and before.status == "running":
        return
    target = place.folder / "replaced" / f"{folder.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    target.parent.mkdir(exist_ok=True)
    if before.status == "complete":
        folder.rename(target)
        say(f"  settings or inputs have changed; the earlier result is kept in {target}")
    else:
        shutil.rmtree(folder)
        say("  settings or inputs have changed since this stage was interrupted; starting it anew")


def _origins_of(place: Place, settings: Any) -> dict[str, str]:
    return {path: origin for path, origin in place.origins.items() if path.split(".")[0] in settings}


def _known_stages(folder: Path) -> list[str]:
    file = folder / "run.json"
    return json.loads(file.read_text(encoding="utf-8")).get("stages", []) if file.is_file() else []
