"""The manifest of a stage: what it was made from, with which settings, by which code, at what cost.

Inputs and outputs are named by hash, so a stage that is up to date can be skipped and lineage runs from a model back
to the raw text. Paths within a run are kept relative: a run folder may be moved. How a stage works is not known here.
"""

import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self

import ludus
from ludus.base.errors import LudusError, RunError
from ludus.base.files import read_json, sha256_json, write_json
from ludus.runs.artefacts import Artefact, artefact, sha256_artefact
from ludus.runs.cost import Cost

MANIFEST = "manifest.json"


@dataclass
class Manifest:
    """What `manifest.json` in a stage's folder says. `begin` it, `update` it at checkpoints, `finish` it."""

    stage: str
    fingerprint: str
    status: Literal["running", "complete"] = "running"
    settings: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, Artefact] = field(default_factory=dict)
    outputs: dict[str, Artefact] = field(default_factory=dict)
    started: str = ""
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    tokens: int = 0
    environment: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    folder: Path = field(default=Path(), compare=False)  # where it lies; not written
    _cost: Cost | None = field(default=None, repr=False, compare=False)

    @classmethod
    def begin(
        cls,
        folder: Path | str,
        stage: str,
        *,
        settings: Mapping[str, Any],
        origins: Mapping[str, str] | None = None,
        inputs: Mapping[str, Path | str] | None = None,
        command: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> Self:
        """Write the manifest of a stage that starts now, hashing its inputs.

        A stage cut short and begun again with the same fingerprint carries its start and cost on.
        """
        folder = Path(folder)
        artefacts = {name: artefact(path, folder) for name, path in (inputs or {}).items()}
        manifest = cls(
            stage=stage,
            fingerprint=fingerprint(stage, settings, artefacts),
            settings=dict(settings),
            origins=dict(origins or {}),
            inputs=artefacts,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=environment(threads),
            command=list(sys.argv if command is None else command),
            folder=folder,
        )
        before = cls._read_if_any(folder)
        if before and before.status == "running" and before.fingerprint == manifest.fingerprint:
            manifest.started, manifest.tokens = before.started, before.tokens
            manifest._cost = Cost(before.wall_seconds, before.cpu_seconds, before.peak_memory_bytes)
        else:
            manifest._cost = Cost()
        manifest.write()
        return manifest

    def update(self, *, tokens: int | None = None) -> None:
        """Write the cost so far, so that a kill loses only what came after."""
        if self._cost is not None:
            self.wall_seconds, self.cpu_seconds, self.peak_memory_bytes = self._cost.so_far()
        self.tokens = self.tokens if tokens is None else tokens
        self.write()

    def finish(
        self, outputs: Mapping[str, Path | str], *, tokens: int | None = None, summary: Mapping[str, Any] | None = None
    ) -> None:
        """Hash the outputs and mark the stage complete."""
        self.outputs = {name: artefact(path, self.folder) for name, path in outputs.items()}
        self.summary = dict(summary or {})
        self.status = "complete"
        self.update(tokens=tokens)

    def write(self) -> None:
        """Write `manifest.json` into the folder, atomically."""
        write_json(self.folder / MANIFEST, self.as_json())

    @classmethod
    def read(cls, folder: Path | str) -> Self:
        """Read the manifest of a stage's folder; raise RunError when there is none or it is not a stage's."""
        path = Path(folder) / MANIFEST
        content = read_json(path, RunError)
        if not isinstance(content, dict) or not {"stage", "fingerprint"} <= content.keys() <= set(_written()):
            raise RunError(f"{path} is not the manifest of a stage this version of ludus can read")
        return cls(**content, folder=path.parent)

    @classmethod
    def _read_if_any(cls, folder: Path) -> Self | None:
        if not (folder / MANIFEST).is_file():
            return None
        try:
            return cls.read(folder)
        except LudusError:  # a corpus or a data set has a manifest.json of another kind
            return None

    def as_json(self) -> dict[str, Any]:
        """Return what is written, as plain values."""
        return {name: getattr(self, name) for name in _written()}

    def is_current(self, wanted: str) -> bool:
        """Tell whether the stage is complete under the fingerprint `wanted` and its outputs are as it left them."""
        return self.status == "complete" and self.fingerprint == wanted and not self.changed(self.outputs)

    def changed(self, artefacts: Mapping[str, Artefact]) -> list[str]:
        """Return the names of those of its inputs or outputs that are gone or differ from when they were recorded."""
        found = {name: self.folder / recorded["path"] for name, recorded in artefacts.items()}
        return [
            name
            for name, path in found.items()
            if not path.exists() or sha256_artefact(path) != artefacts[name]["sha256"]
        ]


def fingerprint(stage: str, settings: Mapping[str, Any], inputs: Mapping[str, Artefact]) -> str:
    """Return the hash of all that decides a stage's outcome; where the inputs lie does not."""
    hashes = {name: recorded["sha256"] for name, recorded in inputs.items()}
    return sha256_json({"stage": stage, "settings": dict(settings), "inputs": hashes})


def environment(threads: int | None = None) -> dict[str, Any]:
    """Describe the code and the machine; `threads` is what the stage computes with, by default all cores allowed."""
    cores = os.cpu_count() or 1
    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "platform": platform.platform(),
        "cpu_count": cores,
        "threads": threads or int(os.environ.get("OMP_NUM_THREADS") or cores),
        "ludus": ludus.__version__,
    }


def lineage(path: Path | str) -> list[Manifest]:
    """Return the manifests of every stage that led to `path`, the oldest first, the one that made it last.

    `path` is a stage's folder or anything in it. Raise RunError when nothing says how it was made.
    """
    maker = _maker(Path(path))
    if maker is None:
        raise RunError(f"nothing says how {path} was made: no {MANIFEST} of a stage is in it or above it")
    return list(_ancestry(maker, set()))


def _ancestry(manifest: Manifest, seen: set[Path]) -> Iterator[Manifest]:
    seen.add(manifest.folder.resolve())
    for recorded in manifest.inputs.values():
        maker = _maker(manifest.folder / recorded["path"])
        if maker is not None and maker.folder.resolve() not in seen:
            yield from _ancestry(maker, seen)
    yield manifest


def _maker(path: Path) -> Manifest | None:
    """Return the manifest of the stage in whose folder `path` lies."""
    path = path.resolve()
    found = (Manifest._read_if_any(folder) for folder in (path, *path.parents))
    return next((manifest for manifest in found if manifest is not None), None)


def _written() -> list[str]:
    return [each.name for each in fields(Manifest) if each.name not in ("folder", "_cost")]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
