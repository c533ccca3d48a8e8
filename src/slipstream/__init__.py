"""Slipstream: streaming speech-to-text by delayed-streams modelling."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["load", "load_runner"]

if TYPE_CHECKING:
    from slipstream.loading import load, load_runner

# Public names and where they live: importing the package loads none of it.
_HOMES = {
    "load": "slipstream.loading",
    "load_runner": "slipstream.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'slipstream' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
