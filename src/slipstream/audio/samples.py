"""Samples: their rate, and the checks that all audio passes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from slipstream.errors import AudioError
from slipstream.types import FloatArray

SAMPLE_RATE = 24_000
"""What Mimi hears, in Hz."""
FRAME_SAMPLES = 1920
"""One frame of Mimi: 80 ms."""

Piece = tuple[FloatArray, int]
"""Samples `[C, S]` and their rate in Hz."""

logger = logging.getLogger("slipstream.audio")


def check_rate(rate: Any, name: str = "sample_rate") -> int:
    """Return a sample rate in Hz as an integer. Raises `AudioError` for what is not one between 1000 and 768000."""
    low, high = 1_000, 768_000
    number = isinstance(rate, (int, float, np.integer, np.floating)) and not isinstance(rate, bool)
    if not (number and low <= rate <= high and rate == int(rate)):  # false for NaN
        raise AudioError(f"{name}={rate!r}: expected a whole number of Hz between {low} and {high}")
    return int(rate)


def check_finite(audio_CS: npt.NDArray[Any], name: str, seconds: float = 0.0, rate: int = 0) -> None:
    finite = np.isfinite(audio_CS).all(axis=0)
    if finite.all():
        return
    first = int(np.argmin(finite))
    where = f"{seconds + first / rate:.3f} s" if rate else f"index {first}"
    raise AudioError(f"{name}: the sample at {where} is not a finite number")


def from_integers(array: npt.NDArray[Any]) -> FloatArray:
    full_scale = -float(np.iinfo(array.dtype).min)
    return (array / full_scale).astype(np.float32)
