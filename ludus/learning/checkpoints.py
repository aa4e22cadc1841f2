"""Save and load the state of a run: nested values and tensors, never pickle.

A checkpoint is a folder `step-00000042` with `tensors.safetensors`, `state.json`, where it was measured `metric.json`,
and the checksums of these. It appears whole by one rename, and older ones go only after that, so a kill or a full disk
never costs the newest one, nor the best. What belongs into the state is the loop's business; here a state is any nested
dict of plain values and tensors. Who writes while training goes on is in `saver`.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ludus.base.errors import CheckpointError, DataError, DiskFull
from ludus.base.files import (
    disk_full_message,
    folder_in_progress,
    free_bytes,
    read_json,
    remove_folder,
    sweep,
    verify_folder,
    write_json,
)
from ludus.model.exchange import write_tensors

FORMAT = 2
HEADROOM = 1.2  # a disk this close to full would fail at the next log line
TENSOR, TUPLE = "$tensor", "$tuple"
METRIC, MARKER = "metric.json", "best.json"
STEP_FOLDER = re.compile(r"step-(\d{8,})")


def save(
    folder: Path | str, step: int, state: Mapping[str, Any], *, keep: int = 2, metric: tuple[str, float] | None = None
) -> Path:
    """Save `state` as `folder/step-…` and return its path; on return it survives a kill and a power cut.

    Then drop all but the newest `keep` and the one of the least `metric` (a name and its value at this step), and those
    of a later step: they belong to a future this run has gone back on.
    Raise DiskFull, with everything older untouched, when there is no room; TypeError for a value no state can hold.
    """
    values, tensors = pack(state)
    return write(folder, step, values, on_cpu(tensors), keep=keep, metric=metric)


def write(
    folder: Path | str,
    step: int,
    values: Any,
    tensors: Mapping[str, torch.Tensor],
    *,
    keep: int,
    metric: tuple[str, float] | None = None,
) -> Path:
    """Write what `pack` has taken apart; see `save`. The tensors are on the CPU, contiguous, and share no memory."""
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least one checkpoint must stay")
    folder = Path(folder)
    document = json.dumps({"format": FORMAT, "step": step, "state": values})
    target = folder / f"step-{step:08d}"
    size = len(document) + sum(tensor.nbytes for tensor in tensors.values())
    sweep(folder)  # the dead's half-written ones may be the room that is missing
    if free_bytes(folder) < HEADROOM * size:
        raise DiskFull(disk_full_message(target, needed_bytes=int(HEADROOM * size)))
    with folder_in_progress(target) as temp:
        write_tensors(tensors, temp / "tensors.safetensors")
        (temp / "state.json").write_text(document, "utf-8")
        if metric is not None and math.isfinite(metric[1]):
            write_json(temp / METRIC, {"metric": metric[0], "value": metric[1]})
    _prune(folder, step, keep)
    return target


def latest(folder: Path | str) -> Path | None:
    """Return the checkpoint of the highest step in `folder`, or None; what is unfinished does not count."""
    return max(_checkpoints(Path(folder)), default=(0, None))[1]


def best(folder: Path | str) -> tuple[Path, float] | None:
    """Return the checkpoint of the least metric in `folder`, the earliest of equals, with that metric; None without."""
    measured = [(_metric(path), step, path) for step, path in _checkpoints(Path(folder))]
    found = min(((value, step, path) for value, step, path in measured if value is not None), default=None)
    return None if found is None else (found[2], found[0])


def step_of(path: Path) -> int:
    """Return the step that a checkpoint's name tells."""
    return int(path.name.removeprefix("step-"))


def load(path: Path | str) -> tuple[int, dict[str, Any]]:
    """Return the step and the state of one checkpoint, on the CPU, equal to what was saved in value, type and dtype.

    Raise CheckpointError when it is missing, damaged (any flipped bit) or of another format.
    """
    path = Path(path)
    try:
        verify_folder(path)
        saved = read_json(path / "state.json", CheckpointError)
        if not isinstance(saved, dict) or saved.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not a checkpoint this version of ludus can read (format {FORMAT})")
        tensors = load_file(path / "tensors.safetensors")
        return saved["step"], _unpack(saved["state"], tensors)
    except CheckpointError as problem:
        raise CheckpointError(f"{problem}; {_way_on(path)}") from None
    except (KeyError, SafetensorError, FileNotFoundError) as problem:
        raise CheckpointError(f"{path} does not hold what its state.json says: {problem}; {_way_on(path)}") from None


def pack(state: Mapping[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a state as JSON values, and its tensors by name: not copies, and possibly sharing memory.

    Raise TypeError, naming the place, for a value no state can hold.
    """
    packer = _Packer()
    return packer.pack(state, ""), packer.tensors


def on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors as safetensors takes them: contiguous, on the CPU, and no two of them in one memory."""
    storages: set[int] = set()
    ready = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        ready[name] = (tensor.clone() if storage in storages else tensor).cpu().contiguous()
        storages.add(storage)
    return ready


class _Packer:
    """Turns a state into JSON values, and puts its tensors aside under the path where they were found."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._names: dict[tuple, str] = {}  # tied tensors are saved once

    def pack(self, value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            return {TENSOR: self._put(value.detach(), path)}
        if isinstance(value, Mapping):
            return {self._key(key, path): self.pack(inner, f"{path}/{key}") for key, inner in value.items()}
        if isinstance(value, list):
            return [self.pack(inner, f"{path}/{index}") for index, inner in enumerate(value)]
        if isinstance(value, tuple):
            return {TUPLE: self.pack(list(value), path)}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"state{path} is of type {type(value).__name__}; a state holds tensors, numbers, text and None")

    def _key(self, key: Any, path: str) -> str:
        if not isinstance(key, str) or key in (TENSOR, TUPLE):
            raise TypeError(f"state{path} has the key {key!r}; keys are text other than {TENSOR} and {TUPLE}")
        return key

    def _put(self, tensor: torch.Tensor, path: str) -> str:
        same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and same in self._names:
            return self._names[same]
        name = self._names[same] = self._unused(path.removeprefix("/"))
        self.tensors[name] = tensor
        return name

    def _unused(self, name: str) -> str:
        while name in self.tensors or name == "__metadata__":  # safetensors keeps that name to itself
            name += "'"
        return name


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        return tensors[value[TENSOR]]
    if TUPLE in value:
        return tuple(_unpack(value[TUPLE], tensors))
    return {key: _unpack(inner, tensors) for key, inner in value.items()}


def _checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.iterdir() if folder.is_dir() else ():
        name = STEP_FOLDER.fullmatch(path.name)
        if name and path.is_dir():
            yield int(name[1]), path


def _prune(folder: Path, step: int, keep: int) -> None:
    found = sorted(_checkpoints(folder), reverse=True)
    past = [path for at, path in found if at <= step]
    for path in (path for at, path in found if at > step):
        remove_folder(path)
    least = mark_best(folder)
    for path in past[keep:]:
        if path != least:
            remove_folder(path)


def mark_best(folder: Path) -> Path | None:
    """Write `best.json`, for people, and return the best checkpoint; what counts is what lies in the checkpoints.

    Whoever goes on after a kill calls it too: it may have come between a checkpoint and its mark.
    """
    marker, (path, _) = folder / MARKER, best(folder) or (None, None)
    if path is None:
        marker.unlink(missing_ok=True)
        return None
    line = {"step": step_of(path), **read_json(path / METRIC, CheckpointError)}
    with suppress(DiskFull, DataError):
        if not marker.exists() or read_json(marker) != line:
            write_json(marker, line)
    return path


def _metric(path: Path) -> float | None:
    """Return what a checkpoint was measured at, None if it was not or if it cannot be read."""
    try:
        value = json.loads((path / METRIC).read_bytes())["value"]
        return float(value) if math.isfinite(value) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _way_on(path: Path) -> str:
    """Say how to go on without the checkpoint at `path`."""
    others = [other for _, other in sorted(_checkpoints(path.parent)) if other != path]
    if not others:
        return "no other checkpoint is beside it: start the stage again"
    return f"delete {path.name} to go on from {others[-1].name}"
