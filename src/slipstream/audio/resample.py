"""Change the sample rate of a stream, and cut it into frames."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio.samples import FRAME_SAMPLES, SAMPLE_RATE, check_rate


class Resampler:
    """Converts a stream from one sample rate to another, in Hz. Its output does not depend on how the stream is cut."""

    def __init__(self, from_rate: int, to_rate: int = SAMPLE_RATE, channels: int = 1) -> None:
        self.from_rate, self.to_rate, self.channels = check_rate(from_rate), to_rate, channels
        self._soxr = _Soxr(from_rate, to_rate, channels) if from_rate != to_rate else None
        self._recent = _Recent(from_rate, to_rate, channels)
        self._ahead = 0  # samples that `drain` has returned before their turn

    def push(self, audio_CS: FloatArray) -> FloatArray:
        """Take `[C, S]`. Returns the samples that are ready, `[C, S']`; the rest is at most 0.1 s behind."""
        if self._soxr is None:
            return self._without_drained(audio_CS)
        resampled_CS = self._soxr.push(audio_CS)
        self._recent.push(audio_CS, resampled_CS.shape[1])
        return self._without_drained(resampled_CS)

    def flush(self) -> FloatArray:
        """Return the remaining samples, `[C, S']`; nothing may be pushed after it."""
        if self._soxr is None:
            return np.zeros((self.channels, 0), np.float32)
        return self._without_drained(self._soxr.flush())

    def drain(self, more_CS: FloatArray | None = None) -> FloatArray:
        """Return the remaining samples within a stream, `[C, S']`, as if it ended here.

        The stream continues as without this call, except that the next output begins after these samples: all samples
        from there on are the same bits. Of the returned ones, those of the last 9 ms (at 8 kHz; 3 ms at 48 kHz) depend
        on audio that is still to come, which is taken as silence.

        Args:
            more_CS: Audio that will be pushed next, but is already to be included, `[C, S]`.
        """
        if more_CS is None:
            more_CS = np.zeros((self.channels, 0), np.float32)
        if self._soxr is None:
            rest_CS = more_CS
        else:
            recent_CS, returned = self._recent.since_returned()
            # libsoxr's state cannot be copied: another one gets the audio that the remaining samples depend on.
            copy = _Soxr(self.from_rate, self.to_rate, self.channels)
            pieces = [copy.push(np.concatenate([recent_CS, more_CS], axis=1)), copy.flush()]
            rest_CS = np.concatenate(pieces, axis=1)[:, returned:]
        rest_CS = rest_CS[:, self._ahead :]
        self._ahead += rest_CS.shape[1]
        return rest_CS

    def _without_drained(self, resampled_CS: FloatArray) -> FloatArray:
        drained = min(self._ahead, resampled_CS.shape[1])
        self._ahead -= drained
        return resampled_CS[:, drained:]


class _Soxr:
    """A stream of libsoxr, of channels first."""

    def __init__(self, from_rate: int, to_rate: int, channels: int) -> None:
        import soxr

        stream: Any = soxr.ResampleStream
        self._stream = stream(from_rate, to_rate, channels, dtype="float32", quality="HQ")
        self._channels = channels

    def push(self, audio_CS: FloatArray, last: bool = False) -> FloatArray:
        resampled: FloatArray = self._stream.resample_chunk(np.ascontiguousarray(audio_CS.T), last=last)
        return np.ascontiguousarray(resampled.T)

    def flush(self) -> FloatArray:
        return self.push(np.zeros((self._channels, 0), np.float32), last=True)


class _Recent:
    """The audio of a stream that the samples which are still to come depend on."""

    def __init__(self, from_rate: int, to_rate: int, channels: int) -> None:
        divisor = math.gcd(from_rate, to_rate)
        # One sample of the input per period has the same time as a sample of the output.
        self._period, self._output_period = from_rate // divisor, to_rate // divisor
        self._reach = math.ceil(_FILTER_SAMPLES * max(1.0, from_rate / to_rate))
        self._audio_CS = np.zeros((channels, 0), np.float32)  # with room to grow at the end
        self._begin = self._end = 0  # of what is kept in it
        self._position = 0  # of the first kept sample in the stream, a multiple of the period
        self._returned = 0  # samples of output so far

    def push(self, audio_CS: FloatArray, returned: int) -> None:
        """Take `[C, S]`, and how many samples of output came with it."""
        count = audio_CS.shape[1]
        if self._end + count > self._audio_CS.shape[1]:
            kept_CS = self._audio_CS[:, self._begin : self._end]
            room = np.zeros((len(audio_CS), kept_CS.shape[1] + count), np.float32)
            self._audio_CS = np.concatenate([kept_CS, room], axis=1)
            self._begin, self._end = 0, kept_CS.shape[1]
        self._audio_CS[:, self._end : self._end + count] = audio_CS
        self._end += count
        self._returned += returned
        needed = self._returned * self._period // self._output_period - self._reach
        skipped = max(0, needed - self._position) // self._period * self._period
        self._begin += skipped
        self._position += skipped

    def since_returned(self) -> tuple[FloatArray, int]:
        """Return the kept audio, and how many samples of the output of a stream that begins with it came already."""
        returned = self._returned - self._position // self._period * self._output_period
        return self._audio_CS[:, self._begin : self._end], returned


_FILTER_SAMPLES = 200
"""On how many samples to each side an output depends at most, at the lower of both rates: measured are 140."""


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
