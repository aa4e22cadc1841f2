"""Where a run computes: `auto`, or a device by name; what is chosen is said, and what is not there is refused."""

import os
from dataclasses import dataclass
from typing import Literal

import torch

from ludus.base.errors import ConfigError

Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class Place:
    """A device and the reason for it, to be printed."""

    device: torch.device
    reason: str

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.device} ({self.reason})"


def place(device: Device = "auto") -> Place:
    """Return where to compute; under torchrun each process gets the GPU of its own number on its machine.

    Raises:
        ConfigError: the device that was asked for is not there.
    """
    if device == "auto":
        found = next((name for name in ("cuda", "mps") if _present(name)), "cpu")
        reason = "no GPU that PyTorch can use" if found == "cpu" else _name(found)
        return Place(_numbered(found), reason)
    if not _present(device):
        raise ConfigError(
            f"device={device}, and PyTorch {torch.__version__} finds none here; set device=auto or device=cpu, or "
            "install a build of PyTorch for this GPU"
        )
    return Place(_numbered(device), "as set")


def _present(name: str) -> bool:
    if name == "cuda":
        return torch.cuda.is_available()
    return name == "cpu" or torch.backends.mps.is_available()


def _numbered(name: str) -> torch.device:
    if name != "cuda":
        return torch.device(name)
    number = int(os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count()
    if number >= count:
        raise ConfigError(f"process {number} of this machine has no GPU: there are {count}; start at most {count}")
    return torch.device("cuda", number)


def _name(name: str) -> str:
    return torch.cuda.get_device_name(_numbered(name)) if name == "cuda" else "the GPU of this Mac"
