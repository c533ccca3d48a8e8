"""Channels: mix them to one, or keep them separate."""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio.samples import equal_weights

Channels = Literal["mix", "separate"]


class Mixer:
    """Mixes a stream of channels to one. Its output does not depend on how the stream is cut.

    A stereo recording whose channels have opposite phase, for example after a wrongly wired cable, would cancel out.
    Where that happens the louder channel is used alone. This is decided once every 20 ms, from the audio up to there.

    Args:
        weights: The share of each channel in the mix.
        rate: Sample rate in Hz.
    """

    def __init__(self, weights: tuple[float, ...], rate: int) -> None:
        self.weights, self.rate = weights, rate
        self.cancelled_seconds = 0.0
        """Seconds of audio in which the channels cancelled out, so that one of them was used alone."""
        self._block = max(1, rate // _BLOCKS_PER_SECOND)
        self._rest = np.zeros((len(weights), 0), np.float32)
        self._moments = (0.0, 0.0, 0.0)  # mean left * left, right * right and left * right of the recent past
        self._gains = weights

    def push(self, audio_CS: FloatArray) -> FloatArray:
        """Take `[C, S]`. Returns `[1, S']`: complete blocks of 20 ms of stereo, all samples of other audio."""
        if len(self.weights) != 2:
            return _weighted(audio_CS, self.weights)
        audio_CS = np.concatenate([self._rest, audio_CS], axis=1)
        whole = audio_CS.shape[1] - audio_CS.shape[1] % self._block
        self._rest = audio_CS[:, whole:].copy()
        return self._mixed(audio_CS[:, :whole].reshape(2, -1, self._block))

    def flush(self) -> FloatArray:
        """Return the remaining samples, `[1, S]`."""
        blocks_CNS, self._rest = self._rest[:, None], self._rest[:, :0]
        return self._mixed(blocks_CNS) if blocks_CNS.size else np.zeros((1, 0), np.float32)

    def _mixed(self, blocks_CNS: FloatArray) -> FloatArray:
        mixed_NS: FloatArray = _weighted(blocks_CNS, self.weights)[0]
        left_NS, right_NS = blocks_CNS
        products = (left_NS * left_NS, right_NS * right_NS, left_NS * right_NS)
        for index, moments in enumerate(zip(*(product.mean(axis=1).tolist() for product in products), strict=True)):
            left, right, both = (_MEMORY * old + new for old, new in zip(self._moments, moments, strict=True))
            self._moments = (left, right, both)
            before, self._gains = self._gains, self._choose(left, right, both)
            if before != self.weights or self._gains != self.weights:
                mixed_NS[index] = _crossfaded(blocks_CNS[:, index], before, self._gains, self.rate)
            if self._gains != self.weights and moments[0] + moments[1] > _SILENCE:
                self.cancelled_seconds += blocks_CNS.shape[2] / self.rate
        return mixed_NS.reshape(1, -1)

    def _choose(self, left: float, right: float, both: float) -> tuple[float, ...]:
        if left + right < _SILENCE:
            return self._gains
        correlation = both / max(math.sqrt(left * right), 1e-30)
        alone = self._gains != self.weights
        if correlation > (_RECOVERED if alone else _CANCELLED):
            return self.weights
        if alone and max(left, right) < _LOUDER * (left if self._gains[0] else right):
            return self._gains
        return (1.0, 0.0) if left >= right else (0.0, 1.0)


@functools.lru_cache(maxsize=64)
def downmix_weights(layout: str, channels: int) -> tuple[float, ...]:
    """Return the share of each channel in FFmpeg's downmix to mono (ITU-R BS.775, ATSC A/52), which sum to 1.

    `layout`: FFmpeg's name of a channel layout such as `5.1`. If the name does not identify the channels, all
    channels have the same share.
    """
    import av

    if channels == 1 or layout == f"{channels} channels":
        return equal_weights(channels)
    try:
        # The share of a channel is the output when only that channel is 1.
        frame = av.AudioFrame.from_ndarray(np.eye(channels, dtype=np.float32).reshape(1, -1), "flt", layout)
        frame.sample_rate = 48_000
        resampler = av.AudioResampler(format="flt", layout="mono", rate=frame.sample_rate)
        shares = np.concatenate(
            [out.to_ndarray()[0] for out in [*resampler.resample(frame), *resampler.resample(None)]]
        )
    except (av.error.FFmpegError, ValueError):  # FFmpeg has no mix for this layout, such as ambisonics
        return equal_weights(channels)
    return tuple(float(share) for share in shares / shares.sum())


_BLOCKS_PER_SECOND = 50
_FADE_SECONDS = 0.005
# How much of the moments the next block keeps: a memory of 90 ms follows a change of speaker within a syllable.
_MEMORY = 0.8
# Correlation of left and right below which mixing loses most of the sound, and above which mixing is safe again.
# Independent noise of 10 dB below the speech makes -0.91 of a perfect -1.
_CANCELLED, _RECOVERED = -0.8, -0.4
_LOUDER = 4.0  # change to the other channel when its energy is 6 dB higher
_SILENCE = 1e-9  # mean square: -90 dB


def _weighted(audio_CS: FloatArray, gains: tuple[float, ...]) -> FloatArray:
    """Add up channels along the first axis. One by one: the result of a matrix product depends on the length."""
    mixed = audio_CS[0] * np.float32(gains[0])
    for channel, gain in zip(audio_CS[1:], gains[1:], strict=True):
        mixed += channel * np.float32(gain)
    result: FloatArray = mixed[None]
    return result


def _crossfaded(block_CS: FloatArray, before: tuple[float, ...], after: tuple[float, ...], rate: int) -> FloatArray:
    ramp_S = np.minimum((1 + np.arange(block_CS.shape[1])) / (_FADE_SECONDS * rate), 1.0).astype(np.float32)
    faded: FloatArray = _weighted(block_CS, before)[0] * (1 - ramp_S) + _weighted(block_CS, after)[0] * ramp_S
    return faded
