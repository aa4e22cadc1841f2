"""Tensors in files: mapped into memory to be read, streamed to be written; a second copy of a model never exists.

Safetensors are written and read; of pickles, those that PyTorch opens with `weights_only` and maps. A tensor is copied
part by part, and what was copied is let go of at once: the pages of a mapped file count as memory in use too. What the
tensors mean is for `ludus.model.exchange`.
"""

import ctypes
import json
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ludus.base.errors import CheckpointError

PART_BYTES = 2**22
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Entry(NamedTuple):
    """A tensor to be written: what it is, and the function that makes it when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    made: Callable[[], Tensor]

    @property
    def size_bytes(self) -> int:
        """How many bytes it takes in a file."""
        return self.numel * self.dtype.itemsize

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return torch.Size(self.shape).numel()


def tensors_of(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file by name, mapped: they take memory only as they are touched, and none may be changed.

    Raises:
        CheckpointError: the file is damaged, or a pickle of anything but tensors.
    """
    with _readable(file):
        if file.suffix != ".safetensors":
            yield from _unpickled(file)
            return
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - a handle is no mapping
                yield name, tensors.get_tensor(name)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as problem:
        raise CheckpointError(f"{file} cannot be read: {problem}; restore it or save the model again") from None


def _unpickled(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a pickle that holds nothing else; PyTorch's restricted reader runs no code of it."""
    advice = "a pickle may run any code, and ludus opens only mapped ones of tensors alone; convert it to safetensors"
    with file.open("rb") as start:
        if start.read(2) != b"PK":
            raise CheckpointError(f"{file} is refused: it is no archive of PyTorch's, as since version 1.6; {advice}")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as problem:  # the reader's own refusal, or whatever a damaged archive brings about
        if type(problem).__name__ == "UnpicklingError":
            raise CheckpointError(f"{file} is refused: it holds more than tensors; {advice}") from None
        reason = next(iter(str(problem).splitlines()), type(problem).__name__)
        raise CheckpointError(f"{file} cannot be read: {reason}; restore it") from None
    strange = [] if isinstance(found, Mapping) else [f"a {type(found).__name__}"]
    strange = strange or [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"{file} is refused: it holds {strange[0]}, which is no tensor with a name; {advice}")
    yield from found.items()


def spread(stored: Tensor, targets: Sequence[Tensor], *, transposed: bool = False) -> None:
    """Copy a mapped tensor into the targets, which stacked along their first axis are it, or it turned over.

    Dtypes and devices are the targets'. Memory in use grows by a part of the tensor at most.
    """
    if stored.dim() == 0:
        targets[0].copy_(stored)
        return
    if not transposed:
        blocks = stored.split([len(target) for target in targets])
        for target, block in zip(targets, blocks, strict=True):
            for start, stop in _bounds(block):
                target[start:stop].copy_(block[start:stop])
                let_go(block[start:stop])
        return
    for start, stop in _bounds(stored):
        part = stored[start:stop]
        for target, piece in zip(targets, part.split([len(each) for each in targets], dim=1), strict=True):
            target[:, start:stop].copy_(piece.T)
        let_go(part)


def _bounds(block: Tensor) -> Iterator[tuple[int, int]]:
    row_bytes = max(1, block[:1].numel() * block.element_size())
    step = max(1, PART_BYTES // row_bytes)
    return ((start, min(start + step, len(block))) for start in range(0, len(block), step))


def let_go(mapped: Tensor) -> None:
    """Give the memory of a mapped tensor back to the system, which reads it from the file if it is touched again.

    Of a tensor that is not mapped the content is lost.
    """
    if not mapped.is_contiguous() or not sys.platform.startswith("linux"):
        return
    start = -(-mapped.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages of this tensor alone
    stop = (mapped.data_ptr() + mapped.numel() * mapped.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > start:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


def give_back() -> None:
    """Give memory that was freed back to the system, where the C library keeps it in the holes between what is used."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(ctypes.c_size_t(0))


def write(path: Path, entries: Iterable[Entry]) -> None:
    """Write safetensors, marked as PyTorch's; each tensor is made when its turn comes and forgotten after.

    Raises:
        OSError: the disk refuses, as with any other file.
    """
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)  # so that each is aligned; stable
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.size_bytes
        header[entry.name] = {"dtype": DTYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            _stream(entry, file)
        file.flush()
        os.fsync(file.fileno())


def _stream(entry: Entry, file: BinaryIO) -> None:
    tensor = entry.made().detach()
    if tensor.dtype != entry.dtype or tuple(tensor.shape) != tuple(entry.shape):
        raise AssertionError(f"{entry.name} is not what it was said to be")
    for part in tensor.contiguous().reshape(-1).split(PART_BYTES):
        if part.numel():
            file.write(part.cpu().view(torch.uint8).numpy().data)
