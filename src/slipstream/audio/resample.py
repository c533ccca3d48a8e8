"""Change the sample rate of a stream, and cut it into frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio.samples import FRAME_SAMPLES, SAMPLE_RATE, check_rate


class Resampler:
    """Converts a stream from one sample rate to another, in Hz. Its output does not depend on how the stream is cut."""

    def __init__(self, from_rate: int, to_rate: int = SAMPLE_RATE, channels: int = 1) -> None:
        from_rate = check_rate(from_rate)
        self.from_rate, self.channels = from_rate, channels
        self._soxr: Any = None
        if from_rate != to_rate:
            import soxr

            stream: Any = soxr.ResampleStream
            self._soxr = stream(from_rate, to_rate, channels, dtype="float32", quality="HQ")

    def push(self, audio_CS: FloatArray) -> FloatArray:
        """Take `[C, S]`. Returns the samples that are ready, `[C, S']`; the rest is at most 0.1 s behind."""
        return audio_CS if self._soxr is None else self._resample(audio_CS, last=False)

    def flush(self) -> FloatArray:
        """Return the remaining samples, `[C, S']`; nothing may be pushed after it."""
        nothing = np.zeros((self.channels, 0), np.float32)
        return nothing if self._soxr is None else self._resample(nothing, last=True)

    def _resample(self, audio_CS: FloatArray, last: bool) -> FloatArray:
        resampled: FloatArray = self._soxr.resample_chunk(np.ascontiguousarray(audio_CS.T), last=last)
        return np.ascontiguousarray(resampled.T)


_NOTHING = np.zeros(0, np.float32)


class Framer:
    """Cuts the chunks of a mono stream into frames of `frame_samples`."""

    def __init__(self, frame_samples: int = FRAME_SAMPLES) -> None:
        self.frame_samples = frame_samples
        self._rest = _NOTHING

    @property
    def buffered(self) -> int:
        """Samples that wait for their frame to fill, fewer than `frame_samples`."""
        return len(self._rest)

    def push(self, audio_S: FloatArray) -> FloatArray:
        """Take samples `[S]`. Returns the frames they complete, `[T, frame_samples]`, with T from 0."""
        samples = np.concatenate([self._rest, audio_S]) if len(self._rest) else audio_S.copy()
        whole = len(samples) - len(samples) % self.frame_samples
        self._rest = samples[whole:].copy() if whole < len(samples) else _NOTHING
        return samples[:whole].reshape(-1, self.frame_samples)

    def flush(self) -> tuple[FloatArray, int]:
        """Return the last frame, zero-padded, `[T, frame_samples]` with T 0 or 1, and its number of samples."""
        real = self.buffered
        padding = np.zeros(-real % self.frame_samples, np.float32)
        return self.push(padding), real
