"""Samples: their rate, their conversion to float, and the checks that all audio passes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from slipstream.arrays import FloatArray
from slipstream.errors import AudioError

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame

SAMPLE_RATE = 24_000
"""Sample rate of Mimi, in Hz."""
FRAME_SAMPLES = 1920
"""One frame of Mimi: 80 ms."""

logger = logging.getLogger("slipstream.audio")

Warn: TypeAlias = Callable[[str], None]
"""Takes a warning about audio, which names its source."""


def log_warning(warning: str) -> None:
    """Log a warning about audio."""
    logger.warning("%s", warning)


class Piece(NamedTuple):
    """Samples `[C, S]` at `rate` Hz, and the share of each channel in a mono mix."""

    samples_CS: FloatArray
    rate: int
    weights: tuple[float, ...]


def equal_weights(channels: int) -> tuple[float, ...]:
    return (1.0 / channels,) * channels


def check_rate(rate: Any) -> int:
    """Return a sample rate in Hz as an integer. Raises `AudioError` unless it is from 1000 to 768000."""
    low, high = 1_000, 768_000
    number = isinstance(rate, (int, float, np.integer, np.floating)) and not isinstance(rate, bool)
    if not (number and low <= rate <= high and rate == int(rate)):  # false for NaN
        raise AudioError(f"sample_rate={rate!r}: expected a whole number of Hz between {low} and {high}")
    return int(rate)


def check_finite(audio_CS: npt.NDArray[Any], name: str, seconds: float = 0.0, rate: int = 0) -> None:
    finite = np.isfinite(audio_CS).all(axis=0)
    if finite.all():
        return
    first = int(np.argmin(finite))
    where = f"{seconds + first / rate:.3f} s" if rate else f"index {first}"
    raise AudioError(f"{name}: the sample at {where} is not a finite number")


def from_integers(array: npt.NDArray[Any]) -> FloatArray:
    # The factor is a power of two, so the product is exact.
    scaled: FloatArray = array.astype(np.float32) * np.float32(-1 / np.iinfo(array.dtype).min)
    return scaled


def frame_samples(frame: AudioFrame) -> Iterator[FloatArray]:
    """Convert a frame to float `[C, S]`, in pieces of at most a second: one packet can hold hours."""
    channels = frame.layout.nb_channels
    if frame.format.is_planar and channels >= _UNSAFE_PLANES:
        import av

        (frame,) = av.AudioResampler(format=frame.format.packed).resample(frame)
    array: npt.NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, channels).T
    for start in range(0, array.shape[1], frame.sample_rate):
        piece = array[:, start : start + frame.sample_rate]
        if piece.dtype == np.uint8:
            yield from_integers(piece.astype(np.int16) - 128 << 8)
        elif np.issubdtype(piece.dtype, np.signedinteger):
            yield from_integers(piece)
        else:
            yield piece.astype(np.float32, copy=False)


# PyAV counts planes until a null pointer, which AVFrame.data lacks when all of its 8 entries are used: it crashes.
_UNSAFE_PLANES = 8
