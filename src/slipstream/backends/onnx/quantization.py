"""Weights in 8 or 4 bits by block, in the layout of ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from typing import Literal

import numpy as np

from slipstream.backends.onnx.graph import Array
from slipstream.checkpoints.eight_bit import EightBit, blocks_of

Bits = Literal[4, 8]

BLOCK: dict[Bits, int] = {8: 128, 4: 32}
"""Neighbouring inputs that share one scale. Each scale is four more bytes to read at every step."""

_ROWS_AT_ONCE = 1024


def quantize(weight_NK: Array | EightBit, bits: Bits) -> tuple[Array, Array]:
    """Round `[N, K]` to whole multiples of one scale for each block of K.

    Returns the packed integers, uint8 `[N, blocks, BLOCK * bits / 8]`, and the scales, float32 `[N, blocks]`. The
    integers are offset by `2 ** (bits - 1)`; K is padded with zeros to whole blocks.
    Weights that are stored in 8 bits keep their integers.
    """
    if isinstance(weight_NK, EightBit):
        if bits == 8:
            return _stored(weight_NK)
        weight_NK = np.asarray(weight_NK)
    starts = range(0, len(weight_NK), _ROWS_AT_ONCE)
    pieces = [_quantize(weight_NK[start : start + _ROWS_AT_ONCE], bits) for start in starts]
    packed, scales = zip(*pieces, strict=True)
    return np.concatenate(packed), np.concatenate(scales)


def dequantize(packed: Array, scales: Array, bits: Bits, columns: int) -> Array:
    """The weights `[N, columns]` that `quantize` stored, float32."""
    integers = packed
    if bits == 4:
        integers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
    weight = (integers.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]
    kept: Array = weight.reshape(len(weight), -1)[:, :columns]
    return kept


def _stored(weight: EightBit) -> tuple[Array, Array]:
    return blocks_of(weight.rows()).view(np.uint8) ^ np.uint8(128), weight.scale.astype(np.float32)


def _quantize(weight_NK: Array, bits: Bits) -> tuple[Array, Array]:
    block, half = BLOCK[bits], 2 ** (bits - 1)
    weight = np.pad(weight_NK.astype(np.float32), [(0, 0), (0, -weight_NK.shape[1] % block)])
    weight = weight.reshape(len(weight), -1, block)
    # The weight of largest magnitude goes to -half, the one integer without a positive counterpart.
    largest = np.take_along_axis(weight, np.abs(weight).argmax(axis=-1)[..., None], axis=-1)
    scale = largest / np.float32(-half)
    integers = np.rint(weight / np.where(scale == 0, 1, scale))
    unsigned = (np.clip(integers, -half, half - 1) + half).astype(np.uint8)
    packed = unsigned if bits == 8 else unsigned[..., ::2] | unsigned[..., 1::2] << 4
    return packed, scale[..., 0]
