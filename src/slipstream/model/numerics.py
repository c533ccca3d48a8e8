"""Arithmetic that all backends share, in numpy: constants, spectra, positions, rings of keys and conditions.

Functions of positions use operators only, so that they take the tensors of any array library as well.
Shapes: B slots, T positions of one step, C ring columns, N numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from slipstream.arrays import FloatArray
from slipstream.errors import ConfigError
from slipstream.model.config import PAD_ID, WHISPER_RATE, WORD_ID, ConditionerConfig, LMConfig, MelConfig, WhisperConfig

NO_TOKEN = -1
"""Token id that embeds as zero: no token, not even padding."""
UNGENERATED = -2
"""Token id of what is not written yet."""
RMS_EPS = 1e-8
LAYER_NORM_EPS = 1e-5
CODEBOOK_EPS = 1e-5
"""Smallest usage that a codebook's vectors are divided by."""
WHISPER_POSITIONS = 1500
"""Sinusoidal positions of Whisper's encoder (30 s). A stream repeats them."""

_Tensor = TypeVar("_Tensor", bound=Any)


# -------------------------------------------------------------------------------------------------- log-mel


@dataclass(frozen=True)
class MelFrontEnd:
    """A log-mel front end: `(log(max(bands @ power, floor)) * log_scale + 4) / 4` of causal windows.

    Attributes:
        fourier: Windowed cosines, then sines, `[2 * bins, window]`.
        bands: Weights of the bins in each band, `[n_mels, bins]`.
        hop: Samples between windows. A frame's window ends with the frame.
        floor: Smallest power of a band.
        log_scale: Factor of the natural logarithm.
    """

    fourier: FloatArray
    bands: FloatArray
    hop: int
    floor: float
    log_scale: float

    @property
    def context(self) -> int:
        """Samples before a frame that its window covers."""
        return int(self.fourier.shape[1]) - self.hop


def mel_front_end(config: MelConfig | WhisperConfig, sample_rate: int) -> MelFrontEnd:
    """Compute the constants of a codec's front end.

    Whisper's frame f is centred on sample `f * hop`, and this one on sample `f * hop - 60` at 24 kHz.
    Reference: `whisper/audio.py` of https://github.com/openai/whisper.
    """
    if isinstance(config, MelConfig):
        fourier = fourier_basis(config.window, config.window // 2 + 1)
        return MelFrontEnd(fourier, mel_bands(config, sample_rate), config.hop, 1e-5, 1.0)
    # Windows of 25 ms; the 201 bins are 40 Hz apart at every sample rate, the power is that of 16 kHz.
    fourier = fourier_basis(sample_rate // 40, 201, _WHISPER_MEL_RATE / sample_rate)
    floor = math.pow(10, config.mel_floor)
    hop = sample_rate // (2 * WHISPER_RATE)
    return MelFrontEnd(fourier, whisper_bands(config.n_mels), hop, floor, 1 / math.log(10))


def fourier_basis(window: int, bins: int, scale: float = 1.0) -> FloatArray:
    """Cosines, then sines, times a Hann window and `scale`: `[2 * bins, window]`."""
    time = np.arange(window)
    angle = 2 * math.pi * np.arange(bins)[:, None] * time / window
    hann = (0.5 - 0.5 * np.cos(2 * math.pi * time / window)) * scale
    return _float32(np.concatenate([np.cos(angle), np.sin(angle)]) * hann)


def mel_bands(config: MelConfig, sample_rate: int) -> FloatArray:
    """Triangles `[n_mels, bins]` on the mel scale 2595 log10(1 + f / 700), each of height one."""
    low, high = (2595 * math.log10(1 + frequency / 700) for frequency in (config.f_min, config.f_max))
    edges = 700 * (10 ** (np.linspace(low, high, config.n_mels + 2) / 2595) - 1)
    return _float32(_triangles(edges, np.arange(config.window // 2 + 1) * sample_rate / config.window))


_WHISPER_MEL_RATE = 16_000  # Hz; Whisper's bands reach half of it
_LINEAR_HZ = 200 / 3  # Hz for each mel below 1 kHz, which is mel 15
_LOG_STEP = math.log(6.4) / 27  # log frequency for each mel above


def whisper_bands(n_mels: int) -> FloatArray:
    """Triangles `[n_mels, 201]` on Slaney's mel scale, each of area one: librosa's default, which Whisper uses."""
    top = 15 + math.log(_WHISPER_MEL_RATE / 2 / 1000) / _LOG_STEP
    mels = np.linspace(0, top, n_mels + 2)
    edges = np.where(mels < 15, mels * _LINEAR_HZ, 1000 * np.exp(_LOG_STEP * (mels - 15)))
    area = (edges[2:] - edges[:-2])[:, None] / 2
    return _float32(_triangles(edges, np.arange(201) * (_WHISPER_MEL_RATE / 400)) / area)


def _triangles(edges: npt.NDArray[Any], bins: npt.NDArray[Any]) -> npt.NDArray[Any]:
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    triangles: npt.NDArray[Any] = np.minimum(rising, falling).clip(0)
    return triangles


# ------------------------------------------------------------------------------------------------ positions


def whisper_positions(dim: int) -> FloatArray:
    """Sines, then cosines, of each position of Whisper's encoder: `[WHISPER_POSITIONS, dim]`."""
    rate = np.exp(-math.log(10_000) / (dim // 2 - 1) * np.arange(dim // 2))
    angle = np.arange(WHISPER_POSITIONS)[:, None] * rate
    return _float32(np.concatenate([np.sin(angle), np.cos(angle)], axis=1))


def rotary_angles(position: _Tensor, pair: _Tensor, head_dim: int, max_period: float) -> _Tensor:
    """Angles by which a position turns the pairs of a head (rotary embedding, arXiv:2104.09864).

    `pair`: 0 to `head_dim / 2 - 1` in float64. In float32 the angle would be off by 0.06 rad after a million positions.
    """
    angle: _Tensor = position * max_period ** (pair * (-2 / head_dim))
    return angle


def rotations(
    position: npt.NDArray[np.int64], head_dim: int, max_period: float, pairs: int | None = None
) -> tuple[FloatArray, FloatArray]:
    """Cosine and sine of the rotary angles, `[..., pairs]` for positions `[...]`; `head_dim / 2` pairs by default."""
    pair = np.arange(head_dim // 2 if pairs is None else pairs, dtype=np.float64)
    angle = rotary_angles(position[..., None], pair, head_dim, max_period)
    return _float32(np.cos(angle)), _float32(np.sin(angle))


# ---------------------------------------------------------------------------------------------------- rings


def is_text(token: Any) -> Any:
    """Whether a token of the stream is text, neither PAD nor the mark before a word."""
    return (token != PAD_ID) & (token != WORD_ID)


def ring_capacity(context: int, step: int, lookahead: int = 0) -> int:
    """Columns of a ring that is advanced by `step` positions at a time.

    A step's first query still needs its oldest key when the step's last key is written.
    """
    return context + lookahead + step - 1


def ring_keys(last_B1: _Tensor, columns_C: _Tensor) -> _Tensor:
    """The newest position in each column `[B, C]` when position p was written to column p mod C.

    `last_B1`: the last position that was written. Negative where a column is empty.
    """
    keys_BC: _Tensor = last_B1 - (last_B1 - columns_C) % len(columns_C)
    return keys_BC


def sees(query: _Tensor, key: _Tensor, context: int, lookahead: int = 0, first: int | _Tensor = 0) -> _Tensor:
    """Whether a query sees a key: one of `context` up to its own position, or of `lookahead` after, from `first` on."""
    distance = query - key
    visible: _Tensor = (distance < context) & (distance >= -lookahead) & (key >= first)
    return visible


def delayed_sees(position_BT1: _Tensor, key_B1C: _Tensor, config: WhisperConfig, first: int | _Tensor) -> _Tensor:
    """What the queries of a Whisper layer see, `[B, T, C]`, in a stream where they lag behind the keys by `lookahead`.

    `first`: the layer's first position, `layer * lookahead`. A query before it sees everything, because attention needs
    a key; nothing reads its output.
    """
    query = position_BT1 - config.lookahead
    visible: _Tensor = sees(query, key_B1C, config.context, config.lookahead, first) | (query < first)
    return visible


# ------------------------------------------------------------------------------------ conditions, codebooks


def check_conditions(config: LMConfig, values: Mapping[str, object]) -> None:
    """Raise `ConfigError` for a value without a conditioner."""
    known = [conditioner.name for conditioner in config.conditioners]
    if unknown := sorted(values.keys() - set(known)):
        raise ConfigError(f"unknown condition {', '.join(unknown)}; this model has: {', '.join(known) or 'none'}")


def condition_row(config: ConditionerConfig, value: object) -> int:
    """The row of a value in the table of a `lut` conditioner. Raises `ConfigError` for an unknown value."""
    if value not in config.possible_values:
        expected = ", ".join(config.possible_values)
        raise ConfigError(f"condition {config.name}={value!r}: expected one of {expected}")
    return config.possible_values.index(str(value))


def condition_number(config: ConditionerConfig, value: float | str) -> float:
    """The number that a `continuous` conditioner embeds. Raises `ConfigError` for text, and for other conditioners."""
    if config.kind == "tensor" or isinstance(value, str):
        expected = f"a vector of {config.dim} numbers" if config.kind == "tensor" else "a number"
        raise ConfigError(f"condition {config.name}={value!r}: expected {expected}")
    return value * config.scale_factor


def condition_periods(config: ConditionerConfig) -> FloatArray:
    """The periods `[dim / 2]`, over 2 pi, of the cosines and sines that embed a number: 1 to `max_period`."""
    half = config.dim // 2
    return _float32(config.max_period ** (np.arange(half) / (half - 1)))


def condition_sines(config: ConditionerConfig, value: float | str) -> FloatArray:
    """Embed a number as cosines, then sines: `[dim]`. Raises `ConfigError` as `condition_number` does."""
    phase = condition_number(config, value) / condition_periods(config)
    return _float32(np.concatenate([np.cos(phase), np.sin(phase)]))


def codebook_vectors(embedding_sum: npt.NDArray[Any], cluster_usage: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """The vectors `[bins, dim]` of a codebook, and half their squared norms `[bins]`.

    The nearest vector c to x has the largest `x.c - |c|^2 / 2`.
    """
    vectors = _float32(_float32(embedding_sum) / np.maximum(_float32(cluster_usage), CODEBOOK_EPS)[:, None])
    return vectors, _float32(np.square(vectors).sum(axis=1) / 2)


def _float32(array: npt.NDArray[Any]) -> FloatArray:
    return np.asarray(array, np.float32)
