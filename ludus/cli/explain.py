"""`ludus explain`: where a model or any other artefact came from, stage by stage, and what makes it again."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ludus.base.console import duration, say
from ludus.base.errors import LudusError, RunError
from ludus.cli.options import Option, Usage, read
from ludus.model.hub import find
from ludus.model.hub import origin as on_the_hub
from ludus.runs.artefacts import Artefact
from ludus.runs.manifest import MANIFEST, Manifest, lineage

USAGE = Usage(
    "explain",
    "Where something came from: each stage with its inputs, settings, cost and environment, the oldest first",
    (("PATH", "a run, whose newest model is explained, a stage, a model, or any file in one"),),
    1,
    (Option("--json", "the manifests as one JSON list"),),
)
SHORT = 12  # digits of a hash that are shown
LONGEST = 72  # characters of a value that are shown


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    given = read(USAGE, argv)
    if given is None:
        return 0
    manifests = lineage(meant(Path(given.words[0])))
    if given["json"]:
        found = [{**manifest.as_json(), "folder": str(manifest.folder)} for manifest in manifests]
        say(json.dumps(found, indent=2))
        return 0
    from ludus.cli.reproduce import command_of

    before = None
    for manifest in manifests:
        say("\n".join(stage_lines(manifest, before)) + "\n")
        before = manifest
    last = manifests[-1]
    say(f"to make {shown(last.folder)} again:\n\n  {command_of(last, Path(shown(last.folder.parent)))}")
    return 0


def meant(path: Path) -> Path:
    """Return what a path stands for: itself within a stage, for a run its newest model or else its newest stage."""
    if not path.exists():
        from ludus.cli.current import why_no_run

        raise RunError(f"{path} {why_no_run(path)}")
    if not (path / "run.json").is_file():
        return path
    try:
        return find(path).folder
    except LudusError:
        stages = sorted(path.glob(f"*/{MANIFEST}"), key=lambda file: file.stat().st_mtime)
        if not stages:
            raise RunError(f"{path} has no stage yet; `ludus resume {path}` goes on with it") from None
        return stages[-1].parent


def stage_lines(manifest: Manifest, before: Manifest | None) -> Iterator[str]:
    """Lay one stage out; how it was made is told only where it differs from the stage before."""
    from ludus.cli.reproduce import OF_NOBODY, flow, typed, value_at

    yield f"{manifest.stage}: {manifest.status}, {cost(manifest)}"
    yield from artefact_lines("from", manifest, manifest.inputs)
    yield from artefact_lines("made", manifest, manifest.outputs)
    chosen = {key: origin for key, origin in manifest.origins.items() if not origin.startswith(OF_NOBODY)}
    for key, origin in chosen.items():
        yield f"  setting    {key} = {cut(flow(value_at(manifest.settings, key)))}  ({origin})"
    others = sum(1 for _ in leaves(manifest.settings)) - len(chosen)
    if others > 0:
        yield f"  settings   {others} more, by default or derived (--json shows them)"
    if before is None or before.environment != manifest.environment:
        yield f"  made with  {environment(manifest)}"
    if before is None or before.command != manifest.command:
        yield f"  by         {shlex.join(typed(manifest.command))}"


def artefact_lines(title: str, manifest: Manifest, artefacts: dict[str, Artefact]) -> Iterator[str]:
    """Name artefacts by path and hash, with a warning where they are no longer what they were."""
    changed = manifest.changed(artefacts)
    for name, artefact in artefacts.items():
        warning = "  CHANGED OR GONE SINCE" if name in changed else ""
        place = manifest.folder / artefact["path"]
        path = on_the_hub(place) or shown(place)
        yield f"  {title:<9}  {name}: {path}  sha256 {artefact['sha256'][:SHORT]}{warning}"


def cost(manifest: Manifest) -> str:
    """Return when a stage was begun and what it took."""
    facts = [manifest.started.replace("T", " ").replace("+00:00", " UTC"), duration(manifest.wall_seconds)]
    facts.append(f"{duration(manifest.cpu_seconds)} of processors")
    facts.append(f"{manifest.peak_memory_bytes / 1e9:.2f} GB at peak")
    return ", ".join([*facts, *([f"{manifest.tokens:,} tokens"] if manifest.tokens else [])])


def environment(manifest: Manifest) -> str:
    """Return the code and the machine."""
    found = manifest.environment
    facts = [f"{name} {found[name]}" for name in ("ludus", "torch", "python") if found.get(name)]
    facts += [str(found["platform"])] if found.get("platform") else []
    threads = found.get("threads")
    return ", ".join([*facts, *([f"{threads} thread{'s' if threads != 1 else ''}"] if threads else [])])


def leaves(settings: Any) -> Iterator[Any]:
    """Yield every value below."""
    if isinstance(settings, Mapping):
        for value in settings.values():
            yield from leaves(value)
    else:
        yield settings


def cut(text: str) -> str:
    """Return a text short enough for a line."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def shown(path: Path) -> str:
    """Return a path relative to here where it lies below."""
    resolved = path.resolve()
    return os.path.relpath(resolved) if resolved.is_relative_to(Path.cwd()) else str(resolved)
