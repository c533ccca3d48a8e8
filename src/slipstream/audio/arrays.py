"""Arrays of samples, of any numeric type, to float32: the one conversion behind every entry point."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from slipstream.arrays import FloatArray
from slipstream.audio.samples import logger
from slipstream.errors import AudioError

_INT16_PEAK = 32_768
_INT16_HEADROOM = 8  # 16-bit samples that were mixed or resampled in a wider array exceed their range a little
_LOUDEST = 100.0  # lossy decoders exceed 1 slightly; 16-bit integers stored as floats reach thousands
_MOST_CHANNELS = 64


class SampleConverter:
    """Converts the arrays of one stream to float32 with full scale 1.

    Floats are within [-1, 1]. The full scale of int8, int16 and int32 is that of the type; uint8 is centred on 128, as
    in a WAV file. Many libraries return 16-bit samples in wider arrays: int32 samples whose first values fit in 16
    bits are taken as 16-bit samples, with a warning in the log. When such a stream later exceeds 8 times that
    range, it is 32-bit audio with a very quiet beginning: from there on it is taken as 32-bit samples, with another
    warning. int64 samples are always taken as 16-bit samples, and larger values are an error.
    """

    def __init__(self) -> None:
        self._full_scale: int | None = None  # of int32 and int64; None before the first value other than 0

    def convert(self, samples: npt.ArrayLike) -> FloatArray:
        """Convert `[S]` or `[C, S]` to `[C, S]`. Does not check the range of floats (see `check_range`).

        Raises `AudioError` for another shape or type.
        """
        array = _as_array(samples)
        if array.dtype.kind not in "fi" and array.dtype != np.uint8:
            raise AudioError(f"audio of type {array.dtype}: expected floats within [-1, 1], signed integers or uint8")
        if array.ndim == 1:
            array = array[None]
        if array.ndim != 2 or not len(array):
            raise AudioError(f"audio has shape {np.shape(array)}: expected [samples] or [channels, samples]")
        if len(array) > max(_MOST_CHANNELS, array.shape[1]):
            raise AudioError(f"audio of shape {array.shape} has channels last: pass its transpose, [channels, samples]")
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):  # values that overflow float32 are out of range too
                return array.astype(np.float32, copy=False)
        if array.dtype == np.uint8:
            return ((array.astype(np.float32) - 128) / 128).astype(np.float32)
        wide = array.dtype.itemsize > 2
        return (array / (self._wide_scale(array) if wide else -int(np.iinfo(array.dtype).min))).astype(np.float32)

    def convert_mono(self, samples: npt.ArrayLike) -> FloatArray:
        """Convert `[S]` or `[1, S]` to `[S]`, as `convert` does. Raises `AudioError` for more channels."""
        if type(samples) is np.ndarray and samples.dtype == np.float32 and samples.ndim == 1:
            return samples  # the checks of `convert` cost more than the rest of a short chunk
        audio_CS = self.convert(samples)
        if len(audio_CS) != 1:
            raise AudioError(f"audio has shape {audio_CS.shape}: a stream takes one channel, [samples]")
        audio_S: FloatArray = audio_CS[0]
        return audio_S

    def _wide_scale(self, array: npt.NDArray[Any]) -> int:
        peak = max(int(array.max()), -int(array.min())) if array.size else 0
        if self._full_scale is None and peak:
            self._full_scale = _INT16_PEAK if peak <= _INT16_PEAK or array.dtype.itemsize > 4 else 1 << 31
            if peak <= _INT16_PEAK:
                logger.warning("%s audio with a peak of %d is taken as 16-bit samples", array.dtype, peak)
        if array.dtype.itemsize == 4 and peak > _INT16_HEADROOM * (self._full_scale or peak):
            self._full_scale = 1 << 31
            logger.warning("%s audio reaches %d: from here on it is taken as 32-bit samples", array.dtype, peak)
        if array.dtype.itemsize > 4 and peak > _INT16_PEAK:
            raise AudioError(
                f"audio of type {array.dtype} reaches {peak}, where 16-bit samples are expected: "
                "convert it to float32 within [-1, 1], or to int16"
            )
        return self._full_scale or 1


def to_float(samples: npt.ArrayLike) -> FloatArray:
    """Convert a whole recording, or a chunk that is not one of several, to float32 `[C, S]`; see `SampleConverter`.

    Raises `AudioError` for another shape or type, and for values that are not finite or far outside [-1, 1].
    """
    audio_CS = SampleConverter().convert(samples)
    check_range(audio_CS)
    return audio_CS


def check_range(audio_CS: FloatArray, second: float | None = None, sample_rate: float = 1.0) -> None:
    """Raise `AudioError` for the first sample that is not finite or far outside [-1, 1].

    The message names its time where the array starts at `second` of a stream, its index otherwise.
    """
    # Quick, and enough: no square exceeds the sum of all. Unlike `dot`, it does not warn of what overflows.
    if np.vdot(audio_CS, audio_CS) <= _LOUDEST:
        return
    if not audio_CS.size or np.abs(audio_CS).max() <= _LOUDEST:  # false for NaN
        return
    bad_S = ~(np.abs(audio_CS) <= _LOUDEST).all(axis=tuple(range(audio_CS.ndim - 1)))
    first = int(np.argmax(bad_S))
    where = f"index {first}" if second is None else f"{second + first / sample_rate:.3f} s"
    column = audio_CS[..., first].ravel()
    value = column[np.argmin(np.abs(column) <= _LOUDEST)]
    if not np.isfinite(value):
        raise AudioError(f"the sample at {where} is {value:g}, not a finite number")
    raise AudioError(
        f"the sample at {where} is {value:g}: float audio must be within [-1, 1]; divide 16-bit values by 32768, "
        "or pass them as int16"
    )


def refuse_single(sources: object, takes: str, remedy: str) -> None:
    """Raise `AudioError` for a single recording or array: iterating over it would yield letters, bytes or samples."""
    if isinstance(sources, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(sources, "read"):
        raise AudioError(f"{takes}, not one of type {type(sources).__name__}: {remedy}")
    if getattr(sources, "ndim", None) == 1:
        raise AudioError(f"{takes}, not one array of shape {tuple(sources.shape)}: {remedy}")  # type: ignore[attr-defined]


def _as_array(samples: npt.ArrayLike) -> npt.NDArray[Any]:
    tensor: Any = samples
    if hasattr(tensor, "detach"):  # of torch, on any device and with or without a gradient
        tensor = tensor.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor  # NumPy has no bfloat16
    try:
        return np.asarray(tensor)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AudioError(f"audio of type {type(samples).__name__} cannot become an array: {error}") from error
