"""Name a file or folder by where it lies and by the hash of what it holds, as manifests do."""

import os
from pathlib import Path

from ludus.base.errors import RunError
from ludus.base.files import CHECKSUMS, sha256_file, sha256_json

Artefact = dict[str, str]  # {"path": ..., "sha256": ...}


def artefact(path: Path | str, folder: Path | str) -> Artefact:
    """Return the path, as a manifest in `folder` keeps it, and the hash; raise RunError if it cannot be read."""
    path, folder = Path(path), Path(folder)
    check_readable(path)
    inside = path.resolve().is_relative_to(folder.resolve().parent)
    kept = os.path.relpath(path.resolve(), folder.resolve()) if inside else str(path.resolve())
    return {"path": kept, "sha256": sha256_artefact(path)}


def check_readable(path: Path) -> None:
    """Raise RunError unless a file or folder is there and may be read; what is in a folder is not looked at."""
    try:
        next(path.iterdir(), None) if path.is_dir() else path.open("rb").close()
    except FileNotFoundError:
        raise RunError(f"{path} does not exist; make it first or name another") from None
    except OSError as problem:
        raise RunError(f"{path} cannot be read: {problem.strerror}; change its permissions or name another") from None


def sha256_artefact(path: Path) -> str:
    """Return the hash of a file, or of a folder by its own checksums, or by those of all files in it."""
    if path.is_file():
        return sha256_file(path)
    if (path / CHECKSUMS).is_file():
        return sha256_file(path / CHECKSUMS)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256_json({file.relative_to(path).as_posix(): sha256_file(file) for file in files})
