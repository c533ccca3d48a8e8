"""Constants of Whisper's log-mel front end and positions, shared by the backends.

Reference: `whisper/audio.py` and `whisper/model.py` of https://github.com/openai/whisper.
"""

from __future__ import annotations

import math

import numpy as np

from slipstream.arrays import FloatArray

WHISPER_POSITIONS = 1500
"""Sinusoidal positions of Whisper's encoder (30 s); a stream repeats them."""
_MEL_RATE = 16_000  # Whisper's sample rate, up to half of which its bands reach
_LINEAR_HZ = 200 / 3  # Hz for each mel below 1 kHz, which is mel 15
_LOG_STEP = math.log(6.4) / 27  # log frequency for each mel above


def whisper_window(sample_rate: int) -> int:
    """Samples in a window of 25 ms."""
    return sample_rate // 40


def whisper_fourier(sample_rate: int) -> FloatArray:
    """The windowed cosines, then sines, up to 8 kHz: `[2 * 201, window]`.

    The bins are 40 Hz apart at every sample rate. The scale makes the power that of 16 kHz.
    """
    window = whisper_window(sample_rate)
    time = np.arange(window)
    angle = 2 * np.pi * np.arange(201)[:, None] * time / window
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * time / window)) * (_MEL_RATE / sample_rate)
    basis: FloatArray = (np.concatenate([np.cos(angle), np.sin(angle)]) * hann).astype(np.float32)
    return basis


def whisper_bands(n_mels: int) -> FloatArray:
    """Triangles `[n_mels, 201]` on Slaney's mel scale, each of area one: librosa's default, which Whisper uses."""
    top = 15 + math.log(_MEL_RATE / 2 / 1000) / _LOG_STEP
    mels = np.linspace(0, top, n_mels + 2)
    edges = np.where(mels < 15, mels * _LINEAR_HZ, 1000 * np.exp(_LOG_STEP * (mels - 15)))
    bins = np.arange(201) * (_MEL_RATE / 400)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    area = (edges[2:] - edges[:-2])[:, None] / 2
    triangles: FloatArray = (np.minimum(rising, falling).clip(0) / area).astype(np.float32)
    return triangles


def whisper_positions(dim: int) -> FloatArray:
    """Sines, then cosines, of each position: `[WHISPER_POSITIONS, dim]`."""
    rate = np.exp(-math.log(10_000) / (dim // 2 - 1) * np.arange(dim // 2))
    angle = np.arange(WHISPER_POSITIONS)[:, None] * rate
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
