"""Choose a backend and a device from those that this installation and machine have."""

from __future__ import annotations

from slipstream.backends import BACKENDS
from slipstream.errors import BackendError, ConfigError


def choose(device: str = "auto", backend: str = "auto") -> tuple[str, str]:
    """Choose the fastest available backend and device that match the request.

    Args:
        device: `auto` (a GPU if there is one, else the CPU), `cpu`, `gpu` (CUDA or Apple silicon), or the name of one
            backend's accelerator: `cuda`, `cuda:N` or `mps`.
        backend: A name in `BACKENDS`, or `auto`.

    Returns:
        The names of the backend and of the device.

    Raises:
        ConfigError: The backend is unknown.
        BackendError: The device is unknown or not available, or the backend is not installed or does not run on it.
    """
    if backend not in ("auto", *BACKENDS):
        raise ConfigError(f"backend={backend!r}: expected auto, {', '.join(BACKENDS)}")
    kind, _, index = device.partition(":")
    owner = next((name for name, entry in BACKENDS.items() if kind in entry.accelerators), None)
    if (owner is None and device not in ("auto", "cpu", "gpu")) or (":" in device and not index.isdecimal()):
        raise BackendError(f"device={device!r}: expected auto, cpu, gpu, cuda or cuda:N")
    if backend != "auto":
        require(backend)
    if owner is not None:
        # The backend finds out, as it opens the device, whether it works and why not.
        if backend not in ("auto", owner):
            raise BackendError(f"device={device!r}: the {backend} backend has no {kind}; use backend={owner!r}")
        require(owner)
        return owner, device
    available = _available()
    for has_backend, has_device in available:
        if backend in ("auto", has_backend) and (device == "auto" or (device == "cpu") == (has_device == "cpu")):
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
    found = [(name, device) for name, backend in BACKENDS.items() if has(name) for device in backend.devices()]
    return sorted(found, key=lambda pair: pair[1] == "cpu")
