"""Augmentation of log-mel frames, fast enough to draw again each time a recording is used.

Frames are `[F, M]` in the scale of the codec's front end, `(ln power + 4) / 4`; the functions here take ln power.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated

import numpy as np
from pydantic import Field

from slipstream.arrays import FloatArray
from slipstream.data.augment import Share
from slipstream.schema import Options

FLOOR = math.log(1e-5)
"""ln power of digital silence, as the front end floors it."""
_DB = math.log(10) / 10


def to_log_power(frames: FloatArray) -> FloatArray:
    """From the front end's scale to ln power."""
    log_power: FloatArray = frames.astype(np.float32) * np.float32(4) - np.float32(4)
    return log_power


def from_log_power(log_power: FloatArray) -> FloatArray:
    """From ln power to the front end's scale."""
    frames: FloatArray = (np.maximum(log_power, np.float32(FLOOR)) + np.float32(4)) / np.float32(4)
    return frames


class SpectralAugment(Options):
    """Random effects on the frames of an utterance and of a whole row.

    speed, warp: largest factors by which time and the frequency axis (vocal tract length) are stretched.
    tilt_db: range of a smooth random equaliser. gain_db: range of the level. reverb: probability of a room.
    noise: probability of noise, snr_db below the row's speech. band_limit: probability of a narrow line.
    frequency_masks, time_masks: largest number of masked bands and of masked stretches of time (SpecAugment,
    arXiv:1904.08779).
    """

    speed: float = 1.15
    warp: float = 1.15
    tilt_db: float = 6.0
    gain_db: tuple[float, float] = (-14.0, 8.0)
    reverb: Share = 0.0
    noise: Share = 0.6
    snr_db: tuple[float, float] = (3.0, 35.0)
    band_limit: Share = 0.08
    frequency_masks: Annotated[int, Field(ge=0)] = 2
    time_masks: Annotated[int, Field(ge=0)] = 4

    def utterance(self, log_power: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, float]:
        """One utterance `[F, M]` in another voice, at another speed: frames `[F', M]` and F / F'."""
        factor = 1.0
        if self.speed > 1 and rng.random() < 0.6:
            factor = _log_uniform(rng, self.speed)
            log_power = _stretch(log_power, factor)
        if self.warp > 1 and rng.random() < 0.7:
            log_power = log_power @ _warp_matrix(log_power.shape[1], round(_log_uniform(rng, self.warp), 2))
        if self.tilt_db and rng.random() < 0.6:
            log_power = log_power + _equaliser(log_power.shape[1], self.tilt_db * _DB, rng)
        return log_power + np.float32(rng.uniform(*self.gain_db) * _DB), factor

    def row(self, log_power: FloatArray, speech_level: float, rng: np.random.Generator) -> FloatArray:
        """A whole row `[F, M]`: the room, its noise, and the line. `speech_level`: ln power of its speech."""
        F, M = log_power.shape
        if self.reverb and rng.random() < self.reverb:
            log_power = _reverberate(log_power, rng.uniform(0.15, 0.8), rng.uniform(-3, 12))
        if rng.random() < self.noise:
            level = speech_level - rng.uniform(*self.snr_db) * _DB
            noise = level + _equaliser(M, 10 * _DB, rng) - rng.uniform(0, 0.06) * np.arange(M) + _flutter(F, M, rng)
            log_power = np.logaddexp(log_power, noise.astype(np.float32))
        if rng.random() < self.band_limit:
            low, high = rng.integers(0, M // 12), rng.integers(M * 5 // 8, M)
            log_power[:, :low] -= 8
            log_power[:, high:] -= 8
        return np.maximum(log_power, FLOOR)

    def mask(self, log_power: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Blank some bands and some stretches of time, in place."""
        F, M = log_power.shape
        for _ in range(rng.integers(0, self.frequency_masks + 1)):
            width = rng.integers(1, M // 7)
            start = rng.integers(0, M - width)
            log_power[:, start : start + width] = -4.0
        for _ in range(rng.integers(0, self.time_masks + 1)):
            width = rng.integers(1, 16)
            start = rng.integers(0, F - width)
            log_power[start : start + width] = -4.0
        return log_power


NO_AUGMENT = SpectralAugment(
    speed=1, warp=1, tilt_db=0, gain_db=(0, 0), noise=0, band_limit=0, frequency_masks=0, time_masks=0
)
"""Frames as they are."""


def _reverberate(log_power: FloatArray, seconds: float, direct_db: float) -> FloatArray:
    """A room whose sound falls by 60 dB in `seconds`: each band's past power, decaying, `direct_db` below the direct
    sound in sum. There are 100 frames per second."""
    power = np.exp(log_power)
    kept = np.float32(10 ** (-6 * 0.01 / seconds))
    fed = power * np.float32((1 - kept) * 10 ** (-direct_db / 10))
    tail = np.zeros(power.shape[1], np.float32)
    for now, before in zip(power[1:], fed, strict=False):
        tail *= kept
        tail += before
        now += tail
    wet: FloatArray = np.log(power)
    return wet


def _log_uniform(rng: np.random.Generator, largest: float) -> float:
    return float(np.exp(rng.uniform(-math.log(largest), math.log(largest))))


def _stretch(frames: FloatArray, factor: float) -> FloatArray:
    F = len(frames)
    position = np.linspace(0, F - 1, max(2, round(F / factor)), dtype=np.float32)
    low = position.astype(np.int64)
    high = np.minimum(low + 1, F - 1)
    share = (position - low)[:, None]
    return frames[low] * (1 - share) + frames[high] * share


@lru_cache(maxsize=256)
def _warp_matrix(bands: int, factor: float) -> FloatArray:
    """Columns that read each band from `factor` times its frequency, in Hz, by linear interpolation."""
    # Bands are evenly spaced on the mel scale from 20 to 8000 Hz; a few Hz at the edges do not matter here.
    mel = np.linspace(2595 * math.log10(1 + 20 / 700), 2595 * math.log10(1 + 8000 / 700), bands + 2)[1:-1]
    hertz = 700 * (10 ** (mel / 2595) - 1)
    source = np.interp(2595 * np.log10(1 + hertz * factor / 700), mel, np.arange(bands))
    matrix = np.zeros((bands, bands), np.float32)
    low = np.minimum(source.astype(np.int64), bands - 2)
    matrix[low, np.arange(bands)] = 1 - (source - low)
    matrix[low + 1, np.arange(bands)] += source - low
    return matrix


def _equaliser(bands: int, swing: float, rng: np.random.Generator) -> FloatArray:
    x = np.linspace(0, np.pi, bands)
    curves = [rng.uniform(-1, 1) / k * np.cos(k * x + rng.uniform(0, np.pi)) for k in (1, 2, 3)]
    curve: FloatArray = (swing / 2 * np.sum(curves, axis=0)).astype(np.float32)
    return curve


def _flutter(frames: int, bands: int, rng: np.random.Generator) -> FloatArray:
    """Fluctuation of stationary noise around its mean, per frame, from a fixed bank, since drawing it is slow."""
    bank = _flutter_bank(bands)
    start = int(rng.integers(0, len(bank)))
    return np.take(bank, range(start, start + frames), axis=0, mode="wrap")


@lru_cache(maxsize=2)
def _flutter_bank(bands: int) -> FloatArray:
    power = np.random.default_rng(0).gamma(3.0, 1 / 3.0, size=(16384, bands))
    return np.log(power + 1e-3).astype(np.float32)
