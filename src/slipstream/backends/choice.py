"""Choose a backend and a device from those that this installation and machine have."""

from __future__ import annotations

import ctypes
import platform
import re

from slipstream.backends import BACKENDS
from slipstream.errors import BackendError, ConfigError


def choose(device: str = "auto", backend: str = "auto") -> tuple[str, str]:
    """Choose the fastest available backend and device that match the request.

    CUDA with torch comes first, then Apple silicon with MLX, then the CPU with ONNX Runtime.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:N`, or `gpu`: CUDA or Apple silicon.
        backend: A name in `BACKENDS`, or `auto`.

    Returns:
        The names of the backend and of the device.

    Raises:
        ConfigError: The backend is unknown.
        BackendError: The device is unknown or not available, or the backend is not installed or does not run on it.
    """
    if backend not in ("auto", *BACKENDS):
        raise ConfigError(f"backend={backend!r}: expected auto, {', '.join(BACKENDS)}")
    if not re.fullmatch(r"auto|cpu|gpu|mps|metal|cuda(:\d+)?", device):
        raise BackendError(f"device={device!r}: expected auto, cpu, gpu, cuda or cuda:N")
    if backend != "auto":
        require(backend)
    if device.startswith("cuda"):
        if backend not in ("auto", "torch"):
            raise BackendError(f"device={device!r}: the {backend} backend has no CUDA; use backend='torch' for CUDA")
        require("torch")
        return "torch", device
    wanted = {"gpu": ("cuda", "gpu"), "mps": ("gpu",), "metal": ("gpu",)}.get(device, (device,))
    available = _available()
    for has_backend, has_device in available:
        if backend in ("auto", has_backend) and (device == "auto" or has_device in wanted):
            return has_backend, has_device
    found = ", ".join(f"{has_device} ({has_backend})" for has_backend, has_device in available)
    requested = f"device={device!r}" + ("" if backend == "auto" else f" with backend={backend!r}")
    raise BackendError(f"{requested}: not on this machine; available: {found}")


def has(backend: str) -> bool:
    """Whether the package that a backend needs is installed."""
    return BACKENDS[backend].installed


def require(backend: str) -> None:
    """Raise `BackendError` with the command to install a backend if it is not installed."""
    if not has(backend):
        extra = BACKENDS[backend].extra
        package = f"slipstream-stt[{extra}]" if extra else "slipstream-stt"
        raise BackendError(f"the {backend} backend is not installed: pip install '{package}'")


def _available() -> list[tuple[str, str]]:
    """The installed backends with their devices, the fastest first."""
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    found = [("torch", "cuda")] if has("torch") and _has_cuda() else []
    if has("mlx") and apple:
        found.append(("mlx", "gpu"))
    found.append(("onnx", "cpu"))
    if has("torch"):
        found.append(("torch", "cpu"))
    if has("mlx") and not apple:
        found.append(("mlx", "cpu"))
    return found


def _has_cuda() -> bool:
    try:
        # If there is no driver, skip the import of torch: it takes longer than the small model's whole work.
        ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()
