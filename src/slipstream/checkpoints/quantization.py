"""Affine group quantisation with exactly the numbers of MLX.

A row is split into groups. A group has whole numbers of 4 or 8 bits, packed into `uint32` from the lowest bits up,
and a scale and a bias in the type of the weights: `weight = scale * code + bias`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slipstream.checkpoints.tensors import Array
from slipstream.errors import CheckpointError

GROUP_SIZES = {4: 32, 8: 64}
"""Group size by number of bits, as in Kyutai's MLX repositories: their loader assumes it."""

_LEAST_SCALE = np.float32(1e-7)  # of a group whose numbers are all the same


class Quantized(NamedTuple):
    """A matrix `[rows, columns]`, quantised.

    `weight` uint32 `[rows, columns * bits / 32]`; `scales`, `biases` `[rows, columns / group]`.
    """

    weight: Array
    scales: Array
    biases: Array


def quantize(matrix: Array, bits: int) -> Quantized:
    """Quantise a matrix of floats to 4 or 8 bits. Raises `CheckpointError` if its rows do not divide into groups."""
    group = GROUP_SIZES[bits]
    rows, columns = matrix.shape
    if columns % group:
        raise CheckpointError(f"rows of {columns} do not divide into groups of {group}: cannot quantise to {bits} bits")
    groups = matrix.astype(np.float32).reshape(rows, columns // group, group)
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    largest = np.float32(2**bits - 1)
    # The end with the larger magnitude is where codes start (0), and zero itself falls on a code.
    from_low = np.abs(low) > np.abs(high)
    edge = np.where(from_low, low, high)
    scale = np.maximum((high - low) / largest, _LEAST_SCALE)
    scale = np.where(from_low, scale, -scale)
    steps = np.rint(edge / scale)
    scale = np.where(steps != 0, edge / np.where(steps != 0, steps, 1), scale)
    bias = np.where(steps != 0, edge, np.float32(0))
    codes = np.clip(np.rint((groups - bias) / scale), 0, largest).astype(np.uint8)
    return Quantized(
        _pack(codes.reshape(rows, columns), bits),
        scale[..., 0].astype(matrix.dtype),
        bias[..., 0].astype(matrix.dtype),
    )


def fits(quantized: Quantized, columns: int) -> bool:
    """Whether the three arrays describe a matrix of `columns` columns in 4 or 8 bits."""
    weight, scales, biases = quantized
    return (
        weight.dtype == np.uint32
        and weight.ndim == scales.ndim == 2
        and scales.shape == biases.shape
        and len(scales) == len(weight)
        and _bits(quantized, columns) in GROUP_SIZES
        and 32 * weight.shape[1] == _bits(quantized, columns) * columns
        and scales.shape[1] > 0
        and columns % scales.shape[1] == 0
    )


def dequantize(quantized: Quantized, columns: int) -> Array:
    """The matrix of `columns` columns, in the type of the scales; any size of group that `fits`."""
    weight, scales, biases = quantized
    dtype = scales.dtype
    codes = _unpack(weight, _bits(quantized, columns)).reshape(*scales.shape, -1)
    with np.errstate(invalid="ignore", over="ignore"):  # a file can hold any numbers: readers check the result
        # Each of the two operations rounded to the scales' type, as `mlx.core.dequantize` has it; float32 holds
        # both results exactly enough to be rounded once, and is much faster than bfloat16.
        product = (codes * scales[..., None].astype(np.float32)).astype(dtype).astype(np.float32)
        matrix: Array = (product + biases[..., None].astype(np.float32)).astype(dtype)
    return matrix.reshape(len(weight), columns)


def _bits(quantized: Quantized, columns: int) -> int:
    words: int = quantized.weight.shape[1]
    return 32 * words // columns


def _pack(codes: Array, bits: int) -> Array:
    """Codes of 4 or 8 bits (uint8) as `uint32` words, the first code in the lowest bits."""
    if bits == 4:
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    return np.ascontiguousarray(codes).view("<u4").astype(np.uint32, copy=False)


def _unpack(words: Array, bits: int) -> Array:
    octets = np.ascontiguousarray(words.astype("<u4", copy=False)).view(np.uint8)
    if bits == 8:
        return octets
    return np.stack([octets & 15, octets >> 4], axis=-1).reshape(len(words), -1)
