"""What this machine is, as far as it can be told without PyTorch: for help and settings that must be instant."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

GPU_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd")


def has_gpu(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> bool:
    """Tell whether there is a GPU that PyTorch could train on: NVIDIA's, AMD's or Apple's.

    `CUDA_VISIBLE_DEVICES` set to nothing, or to -1, hides NVIDIA's, as it does from PyTorch.
    """
    if environment.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return False
    if any((root / name.lstrip("/")).exists() for name in GPU_FILES):
        return True
    return platform.system() == "Darwin" and platform.machine() == "arm64"
