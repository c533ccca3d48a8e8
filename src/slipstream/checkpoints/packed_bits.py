"""Matrices in 4 to 7 bits per weight, whose expansion is int8 with a scale for each block, as in `eight_bit`.

A code of b bits is in `[-2^(b-1), 2^(b-1) - 1]`. Each group of 32 neighbouring weights of a row has a multiplier of 1
to `2^(8-b)`, each block of 128 a scale: `weight = scale * (multiplier * code)`, and the product in parentheses fits
int8. The weight of largest magnitude in a block is -128 times the scale, so ONNX Runtime's quantisation finds the same
integers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slipstream.checkpoints.tensors import DTYPES, Array
from slipstream.errors import CheckpointError

BLOCK = 128
"""Neighbouring weights of a row that share a scale."""
GROUP = 32
"""Neighbouring weights of a row that share a multiplier."""
BITS = (4, 5, 6, 7)
"""Sizes of a code."""

_LANES = 8  # codes that are packed together, a byte of a 64-bit word each, into as many bytes as a code has bits
_WORDS = GROUP // _LANES
_ONES = np.uint64(0x0101010101010101)
_CLIPS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82)  # shares of the scale that represents the largest weight
_STEPS = (1, 0, -1, -2)  # multipliers to try, from the least that represents the group's largest weight
_PIECE = 1 << 18  # weights at a time: temporary arrays stay in the processor's cache


class Packed(NamedTuple):
    """A matrix `[N, K]` in few bits.

    `codes` uint8 `[N, 4 * bits * groups]`: codes plus `2^(bits-1)`, eight in `bits` bytes, the first in the lowest
    bits; a row is padded to whole groups. `groups` uint8 `[N, ceil(groups / 2)]`: multipliers less 1, the first of two
    in the lower half. `scale` bfloat16 `[N, blocks]`.
    """

    codes: Array
    groups: Array
    scale: Array


def pack(matrix: Array, bits: int) -> Packed:
    """Round a matrix `[N, K]` to 4 to 7 bits, with the scales and multipliers of least squared error among those tried.

    Raises `CheckpointError` for another number of bits.

    Example:
        >>> integers = expand(pack(np.eye(2, 64, dtype=np.float32), 5), 5, 64)
        >>> integers[0, 0]
        np.int8(-128)
    """
    if bits not in BITS:
        raise CheckpointError(f"cannot pack weights into {bits} bits: expected 4 to 7")
    rows, columns = matrix.shape
    step = max(1, _PIECE // columns)
    pieces = [_pack(matrix[start : start + step], bits) for start in range(0, rows, step)]
    return Packed(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))


def expand(packed: Packed, bits: int, columns: int) -> Array:
    """The integers int8 `[N, columns]` that are multiplied with the scales.

    Raises `CheckpointError` without the tensor's name: arrays that do not fit, or a multiplier out of range.
    """
    if bits not in BITS:
        raise CheckpointError(f"{bits} bits per weight, expected 4 to 7")
    rows, groups = len(packed.codes), -(-columns // GROUP)
    expected = (
        ((rows, groups * _WORDS * bits), np.dtype(np.uint8)),
        ((rows, -(-groups // 2)), np.dtype(np.uint8)),
        ((rows, -(-columns // BLOCK)), packed.scale.dtype),
    )
    for part, array, (shape, dtype) in zip(Packed._fields, packed, expected, strict=True):
        if (array.shape, array.dtype) != (shape, dtype):
            raise CheckpointError(
                f"{part} are {array.dtype} {list(array.shape)}, expected {dtype} {list(shape)} "
                f"for {bits} bits and rows of {columns}"
            )
    out = np.empty((rows, groups * GROUP), np.int8)
    step = max(1, _PIECE // out.shape[1])
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        multipliers = _multipliers(packed.groups[start:stop], groups, bits)
        out[start:stop] = _expand(packed.codes[start:stop], multipliers, bits).reshape(stop - start, -1)
    return out[:, :columns]


def _pack(matrix: Array, bits: int) -> Packed:
    rows, columns = matrix.shape
    groups = -(-columns // GROUP)
    padded = np.pad(matrix.astype(np.float32), [(0, 0), (0, -columns % BLOCK)])
    weights = padded.reshape(-1, BLOCK // GROUP, GROUP)
    scale, multipliers = _search(weights, bits)
    half = 2 ** (bits - 1)
    unit = _nonzero(scale)[:, None, None]
    codes = np.rint(weights / (unit * multipliers[..., None])).clip(-half, half - 1)
    # With the integers known, the best scale is a quotient.
    integers = codes * multipliers[..., None]
    power = np.einsum("ngk,ngk->n", integers, integers)
    scale = _rounded(np.einsum("ngk,ngk->n", weights, integers) / _nonzero(power))
    unsigned = (codes + half).astype(np.uint8).reshape(rows, -1, GROUP)[:, :groups]
    nibbles = (multipliers - 1).astype(np.uint8).reshape(rows, -1)[:, :groups]
    nibbles = np.pad(nibbles, [(0, 0), (0, groups % 2)])
    return Packed(
        _join(unsigned, bits).reshape(rows, -1),
        nibbles[:, ::2] | nibbles[:, 1::2] << 4,
        scale.astype(DTYPES["bfloat16"]).reshape(rows, -1),
    )


def _search(weights: Array, bits: int) -> tuple[Array, Array]:
    """The best of some scales `[n]` for blocks `[n, groups, GROUP]`, and the multipliers `[n, groups]` for it."""
    half, most = 2 ** (bits - 1), 2 ** (8 - bits)
    flat = weights.reshape(len(weights), -1)
    at = np.abs(flat).argmax(axis=-1)
    largest = np.take_along_axis(flat, at[:, None], axis=-1)[:, 0]
    holds_largest = np.arange(weights.shape[1]) == (at // GROUP)[:, None]
    best = (np.zeros_like(largest), np.ones(weights.shape[:2], np.float32))
    least = np.full(len(weights), np.inf, np.float32)
    for clip in _CLIPS:
        scale = _rounded(largest * np.float32(clip / -128))
        unit = _nonzero(scale)
        scaled = weights / unit[:, None, None]
        enough = np.ceil(np.abs(scaled).max(axis=-1) / half)
        chosen, errors = np.ones_like(enough), np.full_like(enough, np.inf)
        for step in _STEPS:
            tried = np.where(holds_largest, most, (enough + step).clip(1, most)).astype(np.float32)
            steps = scaled / tried[..., None]
            steps -= np.rint(steps).clip(-half, half - 1)
            error = np.einsum("ngk,ngk->ng", steps, steps) * tried**2
            better = error < errors
            chosen, errors = np.where(better, tried, chosen), np.where(better, error, errors)
        total = errors.sum(axis=-1) * unit**2
        better = total < least
        least = np.where(better, total, least)
        best = (np.where(better, scale, best[0]), np.where(better[:, None], chosen, best[1]))
    return best


def _rounded(scale: Array) -> Array:
    return scale.astype(DTYPES["bfloat16"]).astype(np.float32)


def _nonzero(array: Array) -> Array:
    return np.where(array == 0, np.float32(1), array)


def _join(unsigned: Array, bits: int) -> Array:
    """Codes uint8 `[..., GROUP]` as bytes `[..., GROUP * bits / 8]`."""
    lanes = unsigned.reshape(-1, _LANES).astype("<u8")
    words = np.zeros(len(lanes), "<u8")
    for lane in range(_LANES):
        words |= lanes[:, lane] << np.uint64(bits * lane)
    return words[:, None].view(np.uint8)[:, :bits].reshape(*unsigned.shape[:-1], -1)


def _multipliers(packed: Array, groups: int, bits: int) -> Array:
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)[:, :groups]
    most = 2 ** (8 - bits)
    if (largest := int(nibbles.max(initial=0)) + 1) > most:
        raise CheckpointError(f"a multiplier is {largest}, expected 1 to {most} for {bits} bits")
    multipliers: Array = nibbles.astype(np.uint64) + np.uint64(1)
    return multipliers


def _expand(codes: Array, multipliers: Array, bits: int) -> Array:
    """The products int8, flat. A 64-bit word holds eight codes; their products fit its bytes."""
    count = codes.size // bits
    ends = np.zeros(codes.size + _LANES - bits, np.uint8)  # the last word begins `bits` bytes before its codes end
    ends[: codes.size] = codes.reshape(-1)
    words = np.ndarray((count,), "<u8", ends, strides=(bits,)).copy()
    for lanes in (4, 2, 1):  # codes that stay together: each step moves the upper half of them to its place
        width, place = bits * lanes, 8 * lanes
        low = np.uint64(sum(((1 << width) - 1) << (2 * place * i) for i in range(4 // lanes)))
        upper = words >> np.uint64(width)
        upper &= low
        upper <<= np.uint64(place)
        words &= low
        words |= upper
    factors = np.repeat(multipliers.reshape(-1), _WORDS)
    words *= factors
    factors *= _ONES * np.uint64(2 ** (bits - 1))
    products: Array = words.astype("<u8", copy=False).view(np.uint8)
    products -= factors.astype("<u8", copy=False).view(np.uint8)
    return products.view(np.int8)
