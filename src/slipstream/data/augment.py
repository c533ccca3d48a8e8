"""Augmentation of waveforms: rooms, microphones, telephones and other voices.

Each effect takes samples `[S]` float32 and a generator, and returns samples of the same length; only `resample_speech`
changes time, by a given factor. `WaveAugment` draws a random chain of them.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
import soxr
from pydantic import Field

from slipstream.arrays import FloatArray
from slipstream.data.lines import LineName, through_line
from slipstream.data.rooms import room_bank
from slipstream.schema import Options

Share = Annotated[float, Field(ge=0, le=1)]


class WaveAugment(Options):
    """Random effects on the samples of an utterance.

    reverb, noise, telephone, clip, gain: probability of each. snr_db: range of the speech's level above the noise.
    rooms: number of simulated rooms that `reverb` draws from (extra `rooms`); 0: a decaying tail instead of a room.
    lines: codecs that `telephone` draws from ("mulaw", "alaw", "g722", "amr", "opus"); none: a narrow band only.
    """

    reverb: Share = 0.35
    noise: Share = 0.3
    telephone: Share = 0.1
    clip: Share = 0.05
    gain: Share = 1.0
    snr_db: tuple[float, float] = (5.0, 35.0)
    rooms: Annotated[int, Field(ge=0)] = 0
    lines: tuple[LineName, ...] = ()

    def __call__(self, samples: FloatArray, rate: int, rng: np.random.Generator) -> FloatArray:
        """Apply a random chain of the effects, in their physical order: room, noise, microphone, line."""
        return self.pair(samples, rate, rng)[1]

    def pair(self, samples: FloatArray, rate: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Return the samples as spoken and after the chain, at the same level."""
        spoken = samples
        if rng.random() < self.reverb:
            samples = self._in_room(samples, rate, rng)
        if rng.random() < self.noise:
            samples = add_noise(
                samples, coloured_noise(len(samples), rng.uniform(0, 2), rng), rng.uniform(*self.snr_db)
            )
        if rng.random() < self.clip:
            samples = np.clip(samples, *np.quantile(samples, (0.01, 0.99)))
        if rng.random() < self.telephone:
            samples = self._on_line(samples, rate, rng)
        if rng.random() < self.gain:
            level = rng.uniform(-38, -12)
            spoken, samples = with_level(spoken, level), with_level(samples, level)
        return spoken, samples

    def _in_room(self, samples: FloatArray, rate: int, rng: np.random.Generator) -> FloatArray:
        if not self.rooms:
            return reverberate(samples, rate, rng.uniform(0.1, 0.8), rng)
        return _convolve(samples, room_bank(self.rooms, rate)[int(rng.integers(self.rooms))])

    def _on_line(self, samples: FloatArray, rate: int, rng: np.random.Generator) -> FloatArray:
        if not self.lines:
            return band_limit(samples, rate, rng.uniform(200, 350), rng.uniform(3000, 3600))
        return through_line(samples, rate, self.lines[int(rng.integers(len(self.lines)))], rng)


class RowNoise:
    """Noise under a whole row: recorded sounds and coloured noise, one half each, or coloured noise alone.

    Args:
        share: how often a row gets noise.
        snr_db: range of the speech's level above it.
        sounds: recorded sounds, one after the other, `[S]` int16.
    """

    def __init__(self, share: float, snr_db: tuple[float, float], sounds: npt.NDArray[np.int16] | None = None) -> None:
        self.share, self.snr_db, self.sounds = share, snr_db, sounds

    def __call__(self, samples: FloatArray, level: float, rng: np.random.Generator) -> FloatArray:
        """The row with noise, if it is drawn; `level`: root mean square of its speech."""
        if rng.random() >= self.share or not level:
            return samples
        noise = self._draw(len(samples), rng)
        power = float(np.sqrt(np.mean(noise**2))) + 1e-9
        noisy: FloatArray = samples + noise * np.float32(level / power * 10 ** (-rng.uniform(*self.snr_db) / 20))
        return noisy

    def alone(self, length: int, rng: np.random.Generator) -> FloatArray:
        """A row of noise without speech, at a level between a quiet room and a loud one, `[S]`."""
        return with_level(self._draw(length, rng), rng.uniform(-55, -12))

    def _draw(self, length: int, rng: np.random.Generator) -> FloatArray:
        if self.sounds is None or len(self.sounds) <= length or rng.random() < 0.5:
            return coloured_noise(length, rng.uniform(0, 2), rng)
        start = int(rng.integers(len(self.sounds) - length))
        return self.sounds[start : start + length].astype(np.float32)


def resample_speech(samples: FloatArray, rate: int, factor: float, new_rate: int) -> FloatArray:
    """Play `factor` times as fast, at `new_rate`: time shrinks, pitch and formants rise by `factor`."""
    resampled: FloatArray = soxr.resample(samples, rate * factor, new_rate).astype(np.float32)
    return resampled


def reverberate(samples: FloatArray, rate: int, seconds: float, rng: np.random.Generator) -> FloatArray:
    """A room whose sound falls by 60 dB in `seconds`: a direct path, then exponentially decaying noise."""
    time = np.arange(int(rate * seconds)) / rate
    tail = rng.standard_normal(len(time)) * np.exp(-6.91 * time / seconds)  # 6.91 = ln(10 ** (60 / 20))
    tail[: int(0.002 * rate)] = 0.0
    direct_to_tail = 10 ** (rng.uniform(-3, 12) / 20)
    tail *= 1 / (direct_to_tail * np.sqrt(np.sum(tail**2) + 1e-9))
    tail[0] = 1.0
    return _convolve(samples, tail.astype(np.float32))


def coloured_noise(length: int, exponent: float, rng: np.random.Generator) -> FloatArray:
    """Noise whose power falls with frequency to the `exponent`: 0 white, 1 pink, 2 brown."""
    size = _fft_size(length)
    spectrum = np.fft.rfft(rng.standard_normal(size))
    scale = np.maximum(np.arange(len(spectrum)), 1.0) ** (-exponent / 2)
    return np.fft.irfft(spectrum * scale, size)[:length].astype(np.float32)


def add_noise(samples: FloatArray, noise: FloatArray, snr_db: float) -> FloatArray:
    """Add `noise` so that the speech is `snr_db` above it."""
    power, noise_power = float(np.mean(samples**2)), float(np.mean(noise**2))
    if not power or not noise_power:
        return samples
    mixed: FloatArray = samples + noise * np.float32(np.sqrt(power / noise_power * 10 ** (-snr_db / 10)))
    return mixed


def band_limit(samples: FloatArray, rate: int, low: float, high: float) -> FloatArray:
    """Keep what is between `low` and `high` Hz, with slopes of a tenth of an octave on either side."""
    size = _fft_size(len(samples))
    octave = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / rate), 1.0))
    keep = np.clip((octave - np.log2(low)) * 10, 0, 1) * np.clip((np.log2(high) - octave) * 10, 0, 1)
    return np.fft.irfft(np.fft.rfft(samples, size) * keep, size)[: len(samples)].astype(np.float32)


def with_level(samples: FloatArray, level_db: float) -> FloatArray:
    """Scale to a root mean square of `level_db` below full scale, without passing full scale."""
    rms = float(np.sqrt(np.mean(samples**2)))
    peak = float(np.max(np.abs(samples), initial=0.0))
    if not rms:
        return samples
    scaled: FloatArray = samples * np.float32(min(10 ** (level_db / 20) / rms, 0.99 / peak))
    return scaled


def _convolve(samples: FloatArray, impulse: FloatArray) -> FloatArray:
    size = _fft_size(len(samples) + len(impulse))
    product = np.fft.rfft(samples, size) * np.fft.rfft(impulse, size)
    return np.fft.irfft(product, size)[: len(samples)].astype(np.float32)


def _fft_size(length: int) -> int:
    """The next power of two: a transform of a long prime length is many times slower."""
    return 1 << (length - 1).bit_length()
