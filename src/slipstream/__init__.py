"""Slipstream: streaming speech-to-text by delayed-streams modelling."""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as of typing, which takes a while to import
__version__ = "0.1.0"
__all__ = [
    "SessionOptions",
    "Transcriber",
    "Transcript",
    "Turn",
    "TurnOptions",
    "WatchdogOptions",
    "Word",
    "load",
    "load_runner",
]

if TYPE_CHECKING:
    from typing import Any

    from slipstream.engine.session import SessionOptions
    from slipstream.engine.turns import TurnOptions
    from slipstream.engine.watchdog import WatchdogOptions
    from slipstream.events import Turn, Word
    from slipstream.loading import load, load_runner
    from slipstream.transcriber import Transcriber
    from slipstream.transcript import Transcript

# Public names and where they live: importing the package loads none of it.
_HOMES = {
    "SessionOptions": "slipstream.engine.session",
    "Transcriber": "slipstream.transcriber",
    "Transcript": "slipstream.transcript",
    "Turn": "slipstream.types",
    "TurnOptions": "slipstream.engine.turns",
    "WatchdogOptions": "slipstream.engine.watchdog",
    "Word": "slipstream.types",
    "load": "slipstream.loading",
    "load_runner": "slipstream.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'slipstream' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
