"""8-bit weights in safetensors: a matrix `name` of int8 and a scale for each block of a row, `name_scale` of float32.

`weight = scale * integer`, with the blocks and the rounding of ONNX Runtime, which computes with the stored integers.
The other backends read floats.
"""

from __future__ import annotations

import numpy as np

from slipstream.checkpoints.tensors import DTYPES, Array, Tensors
from slipstream.model.names import Shapes

BLOCK = 128
"""Neighbouring weights of a row that share a scale."""
SCALE = "_scale"


def packed(tensors: Tensors) -> dict[str, Array]:
    """Quantise every matrix and convolution.

    Except in the codec's quantiser, whose codebooks become bfloat16, and the scores and prefixes of Whisper's decoder.
    """
    out: dict[str, Array] = {}
    for name, array in tensors.items():
        if name.startswith("quantizer."):
            out[name] = array.astype(DTYPES["bfloat16"]) if array.ndim > 1 else array
        elif array.ndim < 2 or len(array) == 1 or name.endswith((".age", ".prefix")):
            out[name] = array
        else:
            out[name], out[name + SCALE] = quantize(array)
    return out


def unpacked(tensors: Tensors, _: Shapes) -> dict[str, Array]:
    """Replace each matrix and its scales by a float32 matrix. Those that do not fit each other stay as they are."""
    out = dict(tensors)
    for name, weight in tensors.items():
        scale = tensors.get(name + SCALE)
        if scale is not None and _fits(weight, scale):
            out[name] = dequantize(weight, scale)
            del out[name + SCALE]
    return out


def quantize(weight: Array) -> tuple[Array, Array]:
    """Round a matrix `[N, K]` or convolution `[O, I, K]` to int8, and the scales float32 `[N, blocks]`.

    A row of a convolution is all inputs of the first tap, then of the next.
    """
    rows = _rows(weight.astype(np.float32))
    blocks = np.pad(rows, [(0, 0), (0, -rows.shape[1] % BLOCK)]).reshape(len(rows), -1, BLOCK)
    # The weight of largest magnitude becomes -128, the one integer without a positive counterpart.
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)
    scale = largest / np.float32(-128)
    integers = np.rint(blocks / np.where(scale == 0, 1, scale)).clip(-128, 127).astype(np.int8)
    return _shaped(integers.reshape(len(rows), -1)[:, : rows.shape[1]], weight.shape), scale[..., 0]


def dequantize(weight: Array, scale: Array) -> Array:
    """The weights that `quantize` stored, float32."""
    rows = _rows(weight)
    spread = np.repeat(scale.astype(np.float32), BLOCK, axis=1)[:, : rows.shape[1]]
    return _shaped(rows * spread, weight.shape)


def _fits(weight: Array, scale: Array) -> bool:
    row = int(np.prod(weight.shape[1:]))
    return weight.dtype == np.int8 and weight.ndim >= 2 and scale.shape == (len(weight), -(-row // BLOCK))


def _rows(weight: Array) -> Array:
    rows: Array = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    return rows


def _shaped(rows: Array, shape: tuple[int, ...]) -> Array:
    return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
