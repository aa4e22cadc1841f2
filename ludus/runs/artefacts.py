"""Name a file or folder by where it lies and by the hash of what it holds, as manifests do."""

import os
from pathlib import Path

from ludus.base.errors import RunError
from ludus.base.files import CHECKSUMS, sha256_file, sha256_json

Artefact = dict[str, str]  # {"path": ..., "sha256": ...}


def artefact(path: Path | str, folder: Path | str) -> Artefact:
    """Return the path, as a manifest in `folder` keeps it, and the hash; raise RunError if nothing is there."""
    path, folder = Path(path), Path(folder)
    if not path.exists():
        raise RunError(f"{path} does not exist; make it first or name another")
    inside = path.resolve().is_relative_to(folder.resolve().parent)
    kept = os.path.relpath(path.resolve(), folder.resolve()) if inside else str(path.resolve())
    return {"path": kept, "sha256": sha256_artefact(path)}


def sha256_artefact(path: Path) -> str:
    """Return the hash of a file, or of a folder by its own checksums, or by those of all files in it."""
    if path.is_file():
        return sha256_file(path)
    if (path / CHECKSUMS).is_file():
        return sha256_file(path / CHECKSUMS)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256_json({file.relative_to(path).as_posix(): sha256_file(file) for file in files})
