"""Kyutai's published Python calls for speech to text, on Slipstream's models.

A script written for `moshi.models` runs after changing only its imports. Here, and only here, the first step sees the
initial tokens instead of the first frame, and streaming state lives in an object that is put into a mode.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from slipstream.moshi import client_utils, conditioners, models
    from slipstream.moshi.models import LMGen, LMModel, MimiModel, get_mimi, get_moshi_lm, loaders

__all__ = [
    "LMGen",
    "LMModel",
    "MimiModel",
    "client_utils",
    "conditioners",
    "get_mimi",
    "get_moshi_lm",
    "loaders",
    "models",
]


def __getattr__(name: str) -> Any:
    """Import what is used: the command line's help needs no torch."""
    if name in ("client_utils", "conditioners", "models"):
        return importlib.import_module(f"slipstream.moshi.{name}")
    if name in __all__:
        return getattr(importlib.import_module("slipstream.moshi.models"), name)
    raise AttributeError(f"module 'slipstream.moshi' has no attribute {name!r}")
