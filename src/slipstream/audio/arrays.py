"""Arrays of samples as audio."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slipstream.audio.samples import check_finite, from_integers
from slipstream.errors import AudioError
from slipstream.types import FloatArray

_MOST_CHANNELS = 64
_LOUDEST = 100.0  # lossy decoders overshoot 1 a little; integers stored as floats reach thousands


def to_float(samples: npt.ArrayLike) -> FloatArray:
    """Check an array of samples and bring it to float32 `[C, S]`.

    `samples`: `[S]` or `[C, S]`; floats within [-1, 1], or signed integers of 8 to 32 bits, whose type is full scale.
    Raises `AudioError` for another shape or type, integers in disguise, and values that are not finite numbers.
    """
    array = np.asarray(samples)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or not len(array):
        raise AudioError(f"audio has shape {np.shape(samples)}: expected [samples] or [channels, samples]")
    if len(array) > max(_MOST_CHANNELS, array.shape[1]):
        raise AudioError(f"audio of shape {array.shape} has channels last: pass its transpose, [channels, samples]")
    if array.dtype == np.int64:
        raise AudioError("audio of type int64 does not say its full scale: pass 16-bit samples as int16")
    if np.issubdtype(array.dtype, np.signedinteger):
        return from_integers(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(f"audio of type {array.dtype}: expected floats within [-1, 1] or signed integers")
    check_finite(array, "the array")
    if array.size and (peak := float(np.abs(array).max())) > _LOUDEST:
        raise AudioError(f"float audio lies within [-1, 1], but its peak is {peak:.4g}: divide 16-bit values by 32768")
    return array.astype(np.float32, copy=False)
