"""The folder of a run: one process at a time may write it, and its model can be found by the folder's name.

`hold` takes a lock that the system releases when the process ends, however it ends, so no stale lock needs a hand.
What stages write into their folders is theirs; the order of the stages is kept in `run.json`.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ludus.base.errors import RunError, nearest
from ludus.base.files import make_folder, read_json, sweep, write_json, writing

DESCRIPTIONS = ("config.json", "adapter_config.json")  # of a model, and of an adapter that stands for one
_locks: set[int] = set()  # open lock files of this process


@dataclass(frozen=True)
class RunFolder:
    """A run folder this process holds."""

    path: Path

    def stage(self, name: str) -> Path:
        """Return the folder of a stage, made if need be."""
        with writing(self.path / name):
            make_folder(self.path / name)
        return self.path / name

    def describe(self, recipe: str, stages: Sequence[str], **facts: Any) -> None:
        """Write `run.json`: the recipe's name and its stages in the order they run."""
        write_json(self.path / "run.json", {"recipe": recipe, "stages": list(stages), **facts})


@contextmanager
def hold(path: Path | str) -> Iterator[RunFolder]:
    """Hold a run folder, made if need be, against all other processes; sweep away what killed ones left in it.

    Raise RunError when another process holds it, naming its id, or when it cannot be written.
    """
    path = Path(path)
    with writing(path):
        make_folder(path)
        with tempfile.TemporaryFile(dir=path):  # better to know before the hours of work than after
            pass
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        _locks.add(lock)
    try:
        _acquire(lock, path)
        for folder in (path, *(inner for inner in path.iterdir() if inner.is_dir() and inner.name[0] != ".")):
            sweep(folder)
        yield RunFolder(path)
    finally:
        if lock in _locks:  # a forked child has closed it, and its number may mean another file by now
            _release(lock)


def find_model(path: Path | str) -> Path:
    """Return the model folder meant by `path`: itself, its `model`, or that of the run's newest stage that has one.

    It may hold an adapter, which is opened together with its base. A model in one file (`*.bin`) is meant by itself.
    Raise RunError with advice when there is none.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".bin":
        return path
    for folder in (path, path / "model", *(stage / "model" for stage in reversed(_stages(path)))):
        if any((folder / name).is_file() for name in DESCRIPTIONS):
            return folder
    if not path.exists():
        siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, siblings)
        raise RunError(f"{path} does not exist" + (f"; did you mean {path.parent / near}?" if near else ""))
    raise RunError(f"{path} holds no model yet: no config.json in it, in its model/ or in a stage's; train one first")


def _stages(path: Path) -> list[Path]:
    """Return the stage folders of a run in the order they run; without run.json, in the order of their models' age."""
    if (path / "run.json").is_file():
        run = read_json(path / "run.json", RunError)
        names = run.get("stages") if isinstance(run, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RunError(f'{path / "run.json"} does not name the run\'s stages; expected a list under "stages"')
        return [path / name for name in names]
    configs = [file for name in DESCRIPTIONS for file in path.glob(f"*/model/{name}")]
    return [config.parent.parent for config in sorted(configs, key=lambda config: config.stat().st_mtime)]


def _acquire(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
        user = f"process {holder}" if holder else "another process"
        raise RunError(f"{path} is in use by {user}; wait for it or stop it") from None
    except OSError as problem:
        raise RunError(f"{path} cannot be locked: {problem.strerror}; put the run on a local disk") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)


def _release(lock: int) -> None:
    _locks.discard(lock)
    os.close(lock)


def _forget_in_child() -> None:
    """Close the locks in a forked child, which would else hold them on after its parent's death."""
    for lock in list(_locks):
        _release(lock)


os.register_at_fork(after_in_child=_forget_in_child)
