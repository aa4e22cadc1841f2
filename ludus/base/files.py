"""Write files so that a kill, a full disk or a power cut never leaves half of one; hash them so that damage shows.

A file or folder is written under a hidden temporary name beside its place, flushed to the disk, and renamed: whoever
reads sees the old one or the new one, whole. A finished folder carries `sha256.json`, the hash of every file in it.
A temporary name is held by a lock as long as its writer lives, so what a killed writer left behind can be told from
work in progress and swept away. What the files mean is for the floors above.
"""

import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ludus.base.errors import CheckpointError, DataError, DiskFull, LudusError, RunError

CHECKSUMS = "sha256.json"
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


def atomic_write(path: Path | str, content: bytes | str) -> None:
    """Write a whole file or nothing; text is UTF-8. On DiskFull or RunError the previous file is untouched."""
    path = Path(path)
    # A lone surrogate can only come from JSON or repr, where its escape means the same character.
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with writing(path):
        make_folder(path.parent)
        temp, claim = _claim(path, folder=False)
        try:
            with os.fdopen(claim, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                temp.replace(path)
        finally:
            temp.unlink(missing_ok=True)
        _sync_folder(path.parent)


def write_json(path: Path | str, value: Any) -> None:
    """Write indented JSON atomically. Floats are written so that they read back exactly."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str, error: type[LudusError] = DataError) -> Any:
    """Read a JSON file; raise `error` when it is missing, unreadable or not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from None
    except json.JSONDecodeError as problem:
        reason = f"line {problem.lineno}, column {problem.colno}: {problem.msg}"
        raise error(f"{path} is not valid JSON ({reason}); restore it or make it again") from None
    except (UnicodeDecodeError, RecursionError) as problem:
        raise error(f"{path} is not valid JSON ({type(problem).__name__}); restore it or make it again") from None


def sha256_file(path: Path | str) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Return the hexadecimal SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a value as canonical JSON: the order of keys does not matter, the type of a number does."""
    return sha256_text(json.dumps(value, sort_keys=True, separators=(",", ":")))


def free_bytes(path: Path | str) -> int:
    """Return the free space, in bytes, where `path` is or would be."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def make_folder(path: Path | str) -> None:
    """Make a folder and its parents, each entered durably in its own parent. Do nothing if it is there."""
    path = Path(path)
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


@contextmanager
def writing(target: Path | str) -> Iterator[None]:
    """Turn the disk's refusals while writing `target` into DiskFull or RunError, in one line."""
    target = Path(target)
    try:
        yield
    except DiskFull:  # from a file inside: its hidden name would say nothing to the user
        raise DiskFull(disk_full_message(target)) from None
    except OSError as problem:
        if problem.errno in NO_SPACE:
            raise DiskFull(disk_full_message(target)) from None
        if problem.errno in NOT_ALLOWED:
            where = f" ({problem.filename})" if problem.filename and Path(problem.filename) != target else ""
            advice = "choose another place or change its permissions"
            raise RunError(f"{target} cannot be written: {problem.strerror}{where}; {advice}") from None
        raise


def disk_full_message(target: Path, needed_bytes: int | None = None) -> str:
    """Say how much room is left for `target`, and that what was there before still is."""
    needs = f" of the {needed_bytes / 1e6:.1f} MB needed" if needed_bytes is not None else ""
    kept = f"the previous {target.name} is untouched" if target.exists() else "what was there before is untouched"
    free = f"{free_bytes(target) / 1e6:.1f} MB free"
    return f"the disk is full: {target} has {free}{needs}; make room and repeat the command; {kept}"


@contextmanager
def folder_in_progress(target: Path | str) -> Iterator[Path]:
    """Yield a hidden folder to fill; on success give it checksums and rename it to `target`, replacing what was there.

    On any exception the hidden folder is removed and `target` is untouched; a refusing disk is DiskFull or RunError.
    """
    target = Path(target)
    with writing(target):
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file, and a folder belongs there")
        make_folder(target.parent)
        _put_back(target)
        sweep(target.parent)
        temp, claim = _claim(target, folder=True)
        try:
            yield temp
            _seal(temp)
            _rename_over(temp, target)
            _sync_folder(target.parent)
        finally:  # what is left under the hidden name is a failure's remains, or the folder that was replaced
            shutil.rmtree(temp, ignore_errors=True)
            os.close(claim)


def verify_folder(path: Path | str) -> None:
    """Check every file against the folder's `sha256.json`; raise CheckpointError naming the damaged or missing one."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist or is not a folder")
    sums = read_json(path / CHECKSUMS, CheckpointError)
    # Only the exact text we write counts: a flipped bit that still parses (a key, a blank) is damage too.
    if not isinstance(sums, dict) or (path / CHECKSUMS).read_text("utf-8") != _checksums_text(sums):
        raise CheckpointError(f"{path / CHECKSUMS} is damaged; restore the folder or make it again")
    for name, recorded in sums.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; restore the folder or make it again")
        if sha256_file(file) != recorded:
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one recorded when it was written")


def remove_folder(path: Path | str) -> None:
    """Remove a folder so that a kill halfway never leaves part of it under its own name."""
    path = Path(path)
    with writing(path):
        temp = _hidden(path)
        path.rename(temp)
        _sync_folder(path.parent)
        shutil.rmtree(temp)


def sweep(folder: Path | str) -> int:
    """Remove what killed writers left in `folder`; return how many entries. Work in progress is locked and stays."""
    removed = 0
    for temp in Path(folder).glob(".*.partial"):
        with suppress(OSError):  # gone already, or a file system that cannot tell: leave it
            claim = os.open(temp, os.O_RDONLY)
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(temp) if temp.is_dir() else temp.unlink()
                removed += 1
            finally:
                os.close(claim)
    return removed


def _hidden(target: Path, ending: str = "partial") -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(4)}.{ending}"


def _claim(target: Path, *, folder: bool) -> tuple[Path, int]:
    """Make a hidden file or folder for `target` and lock it: `sweep` in another process then knows its writer lives."""
    while True:
        temp = _hidden(target)
        if folder:
            temp.mkdir()
        with suppress(FileNotFoundError):  # a sweep may come before the lock; then take another name
            claim = os.open(temp, os.O_RDONLY if folder else os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            with suppress(OSError):  # without locks (some network disks) nobody sweeps either
                fcntl.flock(claim, fcntl.LOCK_EX)
            if os.fstat(claim).st_nlink:
                return temp, claim
            os.close(claim)


def _seal(folder: Path) -> None:
    sums = {}
    (folder / CHECKSUMS).unlink(missing_ok=True)  # the folder may have been filled from a finished one
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as stream:
            sums[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
            os.fsync(stream.fileno())
    with (folder / CHECKSUMS).open("w", encoding="utf-8") as stream:
        stream.write(_checksums_text(sums))
        stream.flush()
        os.fsync(stream.fileno())
    for inner in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _sync_folder(inner)


def _checksums_text(sums: dict[str, str]) -> str:
    return json.dumps(sums, indent=1, sort_keys=True) + "\n"


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as problem:  # some network file systems cannot sync a folder
        if problem.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _rename_over(temp: Path, target: Path) -> None:
    """Rename a folder onto another in one step where the system can, else by moving the old one aside first."""
    if not target.exists():
        temp.rename(target)
    elif not _exchange(temp, target):
        aside = _hidden(target, "replaced")
        target.rename(aside)
        temp.rename(target)
        aside.rename(temp)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths atomically; return False where the system cannot (only Linux, and not every file system, can)."""
    if not sys.platform.startswith("linux"):
        return False
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return swap is not None and swap(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _put_back(target: Path) -> None:
    """Undo the first half of a replacement whose second half never came."""
    for aside in target.parent.glob(f".{glob.escape(target.name)}.*.replaced"):
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(target)
