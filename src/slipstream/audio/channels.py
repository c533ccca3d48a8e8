"""Channels: one mixed stream, or each by itself."""

from __future__ import annotations

from typing import Literal

from slipstream.types import FloatArray

Channels = Literal["mix", "separate"]


def mix(audio_CS: FloatArray) -> FloatArray:
    """Average the channels: `[C, S]` to `[1, S]`."""
    return audio_CS if len(audio_CS) == 1 else audio_CS.mean(axis=0, keepdims=True)
