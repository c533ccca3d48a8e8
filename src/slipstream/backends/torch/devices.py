"""Where the PyTorch backend runs."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence


def find_devices() -> Sequence[str]:
    """List the devices of this machine, the fastest first."""
    return ("cuda", "cpu") if has_cuda() else ("cpu",)


def has_cuda() -> bool:
    """Whether PyTorch can use a CUDA device."""
    try:
        # If there is no driver, skip the import of torch: it takes longer than the small model's whole work.
        ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()
