"""Slipstream on Ray: live streams by Ray Serve, archives by Ray Data. Needs the extra `ray`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slipstream.ray.data import transcribe
    from slipstream.ray.serve import app

__all__ = ["app", "transcribe"]

_HOMES = {"app": "slipstream.ray.serve", "transcribe": "slipstream.ray.data"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from slipstream.errors import BackendError

    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        raise BackendError('slipstream.ray needs the extra "ray": pip install "slipstream-stt[ray]"') from error
