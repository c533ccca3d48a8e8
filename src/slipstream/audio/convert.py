"""Convert a stream of samples to the channels and the rate of a model."""

from __future__ import annotations

import copy

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio.channels import Channels, Mixer
from slipstream.audio.resample import Resampler
from slipstream.audio.samples import SAMPLE_RATE, Warn, log_warning


class Converter:
    """Mixes a stream to one channel and changes its sample rate. Its output does not depend on how the stream is cut.

    Args:
        from_rate: Sample rate of the stream, in Hz.
        weights: The share of each channel in the mix, such as those of `equal_weights`.
        to_rate: Sample rate of the output, in Hz.
        channels: `separate` to keep all channels.
    """

    def __init__(
        self, from_rate: int, weights: tuple[float, ...], to_rate: int = SAMPLE_RATE, channels: Channels = "mix"
    ) -> None:
        self.from_rate, self.weights = from_rate, weights
        self._mixer = Mixer(weights, from_rate) if channels == "mix" else None
        self._resampler = Resampler(from_rate, to_rate, 1 if self._mixer else len(weights))

    @property
    def cancelled_seconds(self) -> float:
        """Seconds in which the channels cancelled each other out; see `Mixer`."""
        return self._mixer.cancelled_seconds if self._mixer else 0.0

    def push(self, audio_CS: FloatArray) -> FloatArray:
        """Take `[C, S]`. Returns what is ready, `[1, S']` or `[C, S']`; the rest is at most 0.12 s behind."""
        return self._resampler.push(self._mixer.push(audio_CS) if self._mixer else audio_CS)

    def flush(self) -> FloatArray:
        """Return the remaining samples; nothing may be pushed after it."""
        rest_CS = self._resampler.push(self._mixer.flush()) if self._mixer else None
        last_CS = self._resampler.flush()
        return last_CS if rest_CS is None else np.concatenate([rest_CS, last_CS], axis=1)

    def drain(self) -> FloatArray:
        """Return the remaining samples within a stream, which continues as without this call: see `Resampler.drain`."""
        return self._resampler.drain(copy.copy(self._mixer).flush() if self._mixer else None)


def warn_of_cancellation(name: str, seconds: float, warn: Warn = log_warning) -> None:
    """Warn that channels of `name` cancelled each other out, if for a second or more."""
    if seconds >= _REPORTED_SECONDS:
        warn(
            f"{name}: its channels have opposite phase and cancel out when mixed, for {seconds:.1f} s; "
            "the louder one is used there"
        )


_REPORTED_SECONDS = 1.0
