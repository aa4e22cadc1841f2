"""What turns quantised weights back: our own PyTorch, or bitsandbytes' kernels where they are installed and pay.

Both give the same bits, so which one runs changes nothing but the time. On a processor ours is chosen: importing
bitsandbytes takes seconds, more than its kernels win back in thousands of steps of a model that one trains there.
"""

import importlib.util
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from ludus.adapters import int8, nf4
from ludus.base.errors import ConfigError, MissingExtra

Kernel = Literal["torch", "bitsandbytes"]
Choice = Literal["auto", "torch", "bitsandbytes"]


@lru_cache(maxsize=64)
def choose(kind: str, wanted: Choice, device_kind: str) -> Kernel:
    """Return the kernel for layers of a kind on a kind of device.

    Raises:
        MissingExtra: bitsandbytes was asked for and is not installed.
        ConfigError: bitsandbytes was asked for where it has nothing to offer.
    """
    installed = importlib.util.find_spec("bitsandbytes") is not None
    if wanted == "bitsandbytes":
        if kind != "nf4":
            raise ConfigError(f"kernel=bitsandbytes is for nf4, not for {kind}, which needs no kernel; use kernel=auto")
        if not installed:
            raise MissingExtra("kernel=bitsandbytes needs bitsandbytes; install with: pip install 'ludus[qlora]'")
        return "bitsandbytes"
    pays = wanted == "auto" and kind == "nf4" and device_kind == "cuda" and installed
    return "bitsandbytes" if pays else "torch"


def decode(code: nf4.Nf4 | int8.Int8, shape: tuple[int, int], dtype: torch.dtype, kernel: Kernel) -> Tensor:
    """Return the weights in `dtype`."""
    if isinstance(code, int8.Int8):
        return int8.decode(code, dtype)
    return nf4.decode(code, shape, dtype) if kernel == "torch" else _bitsandbytes(code, shape, dtype)


def name(kernel: Kernel) -> str:
    """Return the kernel's name with its version."""
    return f"PyTorch {torch.__version__}" if kernel == "torch" else f"bitsandbytes {_imported().__version__}"


def _bitsandbytes(code: nf4.Nf4, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Decode by bitsandbytes' kernels, told of rows that hold whole blocks.

    Its kernel for processors (0.50) gives wrong weights for rows that are no multiple of 64 long: blocks run on from
    row to row, and it begins one with each. Where there is an odd number of weights it has none.
    """
    count = shape[0] * shape[1]
    if count % 2:
        return nf4.decode(code, shape, dtype)
    _imported()
    kernels, scales = torch.ops.bitsandbytes, code.scales
    if code.coarse is not None and code.offset is not None:
        scales = kernels.dequantize_blockwise.default(
            scales, code.coarse, nf4.scale_levels(code), nf4.SCALES, torch.float32
        ).add_(code.offset)
    rows = [count // nf4.BLOCK, nf4.BLOCK] if count % nf4.BLOCK == 0 else [1, count]
    packed = code.packed.view(-1, 1)
    return kernels.dequantize_4bit.default(packed, scales, nf4.BLOCK, "nf4", rows, dtype).view(shape)


@lru_cache(maxsize=1)
def _imported() -> Any:
    import bitsandbytes  # type: ignore[import-not-found]

    return bitsandbytes
