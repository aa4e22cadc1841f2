"""The chain: which stages a verb needs, which of them are up to date, and running the rest in order.

A stage is up to date when its settings and the hashes of its inputs are those it was made from, and its outputs are as
it left them. What was made otherwise is set aside, never overwritten, and taken back when it is asked for again: a
mistyped setting costs nothing.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from ludus.base.console import say
from ludus.base.errors import RunError
from ludus.base.files import read_json, remove_folder, write_json
from ludus.recipes import compare, corpus, dpo, evaluate, exercises, grpo, pretrain, report, sft, tokenizer
from ludus.recipes.place import Place, Stage
from ludus.runs.artefacts import artefact, check_readable
from ludus.runs.folder import RunFolder, hold
from ludus.runs.manifest import MANIFEST, Manifest, environment, fingerprint

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        corpus.STAGE,
        tokenizer.STAGE,
        pretrain.STAGE,
        exercises.STAGE,
        sft.STAGE,
        compare.STAGE,
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
        _look_for_what_is_brought(place, names)
        if verb not in ALWAYS:
            _describe(place, held, verb, names)
        for number, name in enumerate(names, 1):
            _make(place, STAGES[name], f"[{number}/{len(names)}] {name}", command)


def _describe(place: Place, held: RunFolder, verb: str, names: list[str]) -> None:
    """Record what was asked for, so that `ludus resume` can go on with it."""
    order = [name for name in STAGES if name in {*_known_stages(place.folder), *names} and name not in ALWAYS]
    held.describe(place.recipe.name, order, verb=verb)
    recipe = {"settings": place.recipe.model_dump(mode="json"), "origins": dict(place.origins)}
    write_json(place.folder / "recipe.json", recipe | {"dropped": list(place.dropped)})


def _make(place: Place, stage: Stage, title: str, command: list[str]) -> None:
    folder, settings, inputs = place.stage(stage.name), stage.settings(place.recipe), stage.inputs(place)
    if stage.name in ALWAYS:
        say(title)
        stage.make(place, Manifest(stage.name, fingerprint=""))
        return
    recorded = {name: artefact(path, folder) for name, path in inputs.items()}
    wanted = fingerprint(stage.name, settings, recorded)
    note = _set_in_place(place, folder, wanted)
    if _is_current(folder, wanted):
        say(f"{title}: up to date{note}")
        return
    say(title + note)
    folder.mkdir(parents=True, exist_ok=True)
    _tell_what_has_changed(folder, place)
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


def _look_for_what_is_brought(place: Place, names: Sequence[str]) -> None:
    """Raise RunError for a missing file or model that a person named: now, not after the stages before it."""
    here = place.folder.resolve()
    for name in names:
        for path in STAGES[name].inputs(place).values():
            if not path.resolve().is_relative_to(here):
                check_readable(path)


def _set_in_place(place: Place, folder: Path, wanted: str) -> str:
    """Set aside what was made otherwise, take back what was made as wanted; return what to say about it."""
    if _is_of(folder, wanted):
        return ""
    note, replaced = "", place.folder / "replaced"
    if [file.name for file in folder.glob("*")] == [MANIFEST]:
        remove_folder(folder)  # it failed before it made anything
    elif (folder / MANIFEST).is_file():
        replaced.mkdir(exist_ok=True)
        aside = _unused(replaced, folder.name)
        folder.rename(aside)
        note = f"; made otherwise before, which is kept in {aside}"
    for earlier in sorted(replaced.glob(f"{folder.name}-*"), reverse=True):
        if _is_of(earlier, wanted):
            earlier.rename(folder)
            return f"; taken back from {earlier}"
    return note


def _is_of(folder: Path, wanted: str) -> bool:
    """Tell whether a stage's folder is of the making wanted: finished, or begun and to be gone on with."""
    if not (folder / MANIFEST).is_file():
        return False
    manifest = Manifest.read(folder)
    begun = manifest.status == "running" and manifest.fingerprint == wanted
    return begun or manifest.is_current(wanted)


def _tell_what_has_changed(folder: Path, place: Place) -> None:
    """Warn if a stage that was begun goes on with another torch or on another machine: its last digits may differ."""
    if not (folder / MANIFEST).is_file():
        return
    before, now = Manifest.read(folder).environment, environment(place.recipe.threads)
    changed = [f"{name} {before[name]}, now {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if changed:
        say(f"  warning: begun with {'; '.join(changed)}: results may differ in their last digits")


def _is_current(folder: Path, wanted: str) -> bool:
    return (folder / MANIFEST).is_file() and Manifest.read(folder).is_current(wanted)


def _unused(folder: Path, name: str) -> Path:
    stem = f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    return next(path for number in count() if not (path := folder / f"{stem}-{number:02d}").exists())


def _origins_of(place: Place, settings: Any) -> dict[str, str]:
    return {path: origin for path, origin in place.origins.items() if path.split(".")[0] in settings}


def _known_stages(folder: Path) -> list[str]:
    file = folder / "run.json"
    content = read_json(file, RunError) if file.is_file() else {}
    return content.get("stages", []) if isinstance(content, dict) else []
