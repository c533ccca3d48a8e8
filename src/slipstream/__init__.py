"""Slipstream: streaming speech-to-text with delayed-streams models."""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # not from typing, whose import is slow
__version__ = "0.1.0"
__all__ = [
    "Alternative",
    "AudioError",
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "EndOfTurn",
    "EngineError",
    "Event",
    "Final",
    "Flushed",
    "Hints",
    "History",
    "Keyword",
    "MarkerReached",
    "OpenWord",
    "Overloaded",
    "PartialWord",
    "Ready",
    "Recovered",
    "Segment",
    "SessionClosed",
    "SessionOptions",
    "SlipstreamError",
    "Speaker",
    "Speech",
    "SpeechOptions",
    "StartOfTurn",
    "Step",
    "TextError",
    "Transcriber",
    "Transcript",
    "Turn",
    "TurnOptions",
    "WatchdogOptions",
    "Word",
    "load",
    "load_runner",
    "load_speaker",
]

if TYPE_CHECKING:
    from typing import Any

    from slipstream.engine.options import SessionOptions
    from slipstream.engine.reading import SpeechOptions
    from slipstream.engine.turns import TurnOptions
    from slipstream.engine.watchdog import WatchdogOptions
    from slipstream.errors import (
        AudioError,
        BackendError,
        CheckpointError,
        ConfigError,
        EngineError,
        Overloaded,
        SessionClosed,
        SlipstreamError,
        TextError,
    )
    from slipstream.events import (
        Alternative,
        EndOfTurn,
        Event,
        Final,
        Flushed,
        History,
        MarkerReached,
        OpenWord,
        PartialWord,
        Ready,
        Recovered,
        StartOfTurn,
        Step,
        Turn,
        Word,
    )
    from slipstream.hints import Hints, Keyword
    from slipstream.loading import load, load_runner
    from slipstream.speaker import Speaker, Speech, load_speaker
    from slipstream.transcriber import Transcriber
    from slipstream.transcript import Segment, Transcript

# Where the public names are defined: importing the package loads none of these modules.
_MODULES = {
    "engine.options": "SessionOptions",
    "engine.reading": "SpeechOptions",
    "engine.turns": "TurnOptions",
    "engine.watchdog": "WatchdogOptions",
    "errors": (
        "AudioError BackendError CheckpointError ConfigError EngineError Overloaded SessionClosed SlipstreamError "
        "TextError"
    ),
    "events": (
        "Alternative EndOfTurn Event Final Flushed History MarkerReached OpenWord PartialWord Ready Recovered "
        "StartOfTurn Step Turn Word"
    ),
    "hints": "Hints Keyword",
    "loading": "load load_runner",
    "speaker": "Speaker Speech load_speaker",
    "transcriber": "Transcriber",
    "transcript": "Segment Transcript",
}
_MODULE_OF = {name: f"slipstream.{module}" for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'slipstream' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
