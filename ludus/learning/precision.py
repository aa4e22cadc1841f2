"""The precision policy: which dtype matrix products run in, what that needs, and why. Weights and moments stay float32.

float16 has too small a range for gradients, so its loss is scaled (by the guard). float8 is for the layers' products
alone, and only where a device multiplies it; everything else is then bfloat16.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from ludus.base.errors import ConfigError
from ludus.model.float8 import NEEDED

Precision = Literal["auto", "float32", "bfloat16", "float16", "float8"]
BFLOAT16_CAPABILITY = (8, 0)  # of CUDA devices; older ones emulate it


@dataclass(frozen=True)
class Policy:
    """`dtype` of matrix products; `scaling`: of the loss; `float8`: in the layers; `reason`, to be printed."""

    name: str
    dtype: torch.dtype
    reason: str
    scaling: bool = False
    float8: bool = False

    def __str__(self) -> str:
        """Say it in one line."""
        extra = " with loss scaling" if self.scaling else ", float8 in the layers" if self.float8 else ""
        return f"{str(self.dtype).removeprefix('torch.')} matrix products{extra} ({self.reason})"


def policy(precision: Precision, device: torch.device | str = "cpu") -> Policy:
    """Return what a setting means on a device.

    Raises:
        ConfigError: float8 is asked for, and the device has none.
    """
    device = torch.device(device)
    if precision == "auto":
        return _automatic(device)
    if precision == "float8":
        return _float8(device)
    return Policy(precision, getattr(torch, precision), "as set", scaling=precision == "float16")


def choose(precision: Precision) -> tuple[torch.dtype, str]:
    """Return the dtype and the reason on this machine's processor."""
    found = policy(precision)
    return found.dtype, found.reason


def _automatic(device: torch.device) -> Policy:
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY:
            return Policy("bfloat16", torch.bfloat16, "this GPU multiplies bfloat16 natively")
        return Policy("float16", torch.float16, "this GPU has no native bfloat16", scaling=True)
    if device.type == "cpu":
        if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
            return Policy("bfloat16", torch.bfloat16, "this processor multiplies bfloat16 natively")
        return Policy("float32", torch.float32, "this processor has no native bfloat16")
    return Policy("float32", torch.float32, f"nothing narrower has been tried on {device.type}")


def _float8(device: torch.device) -> Policy:
    wanted = f"CUDA capability {NEEDED[0]}.{NEEDED[1]} or higher (Ada, Hopper, Blackwell)"
    if device.type != "cuda":
        raise ConfigError(f"precision=float8 needs {wanted}, and this run is on {device.type}; set precision=auto")
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < NEEDED:
        name = torch.cuda.get_device_name(device)
        raise ConfigError(
            f"precision=float8 needs {wanted}, and {name} has {major}.{minor}; set precision=auto, which takes "
            f"{_automatic(device).name} there"
        )
    return Policy("float8", torch.bfloat16, "as set", float8=True)
