"""8-bit weights in safetensors: a matrix `name` of int8 and a scale for each block of a row, `name_scale` of float32.

`weight = scale * integer`, with the blocks and the rounding of ONNX Runtime, which computes with the stored integers.
The other backends read floats. A file can store these integers in 4 to 7 bits (see `packed_bits`): codes `name`,
multipliers `name_groups`, scales `name_scale`, and `name_shape` of int32, the number of bits followed by the shape.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from slipstream.checkpoints.packed_bits import BLOCK, Packed, expand, pack
from slipstream.checkpoints.tensors import DTYPES, Array, Tensors, check_finite, is_finite
from slipstream.errors import CheckpointError
from slipstream.model.names import Shapes, is_decoder

SCALE = "_scale"
GROUPS = "_groups"
SHAPE = "_shape"

_EMBEDDING = re.compile(r"(^|_)emb\.")


@dataclass(frozen=True, slots=True)
class EightBit:
    """A matrix `[N, K]` or convolution `[O, I, K]` in 8 bits or fewer, which is expanded when it is used.

    `np.asarray` gives its floats. Without `groups`, `codes` are the integers int8; otherwise see `Packed`.
    """

    name: str
    shape: tuple[int, ...]
    codes: Array
    scale: Array
    groups: Array | None = None
    bits: int = 8

    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float32)

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    def rows(self) -> Array:
        """The integers int8 `[N, K]`; a row of a convolution is all inputs of the first tap, then of the next.

        Raises `CheckpointError` if the arrays do not fit each other.
        """
        if self.groups is None:
            return _rows(self.codes)
        try:
            return expand(Packed(self.codes, self.groups, self.scale), self.bits, self.size // self.shape[0])
        except CheckpointError as error:
            raise _broken(self.name, error) from error

    def reshape(self, shape: tuple[int, ...]) -> EightBit | Array:
        return self if shape == self.shape else np.asarray(self).reshape(shape)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return dequantize(_shaped(self.rows(), self.shape), self.scale).astype(dtype or self.dtype, copy=False)


def packed(tensors: Tensors, bits: int = 8) -> dict[str, Array]:
    """Quantise every matrix and convolution to 4 to 8 bits.

    With 5 to 7 bits, embedding tables get one bit less: rounding errors of a row that is looked up do not add up.
    The scores and prefixes of Whisper's decoder and the codec's decoder stay as they are, and the codebooks of the
    codec become bfloat16.
    Raises `CheckpointError` for another number of bits, and that names a tensor with values that are not finite.
    """
    out: dict[str, Array] = {}
    for name, array in tensors.items():
        check_finite(name, array)
        if name.startswith("quantizer."):
            out[name] = array.astype(DTYPES["bfloat16"]) if array.ndim > 1 else array
        elif is_decoder(name) or array.ndim < 2 or len(array) == 1 or name.endswith((".age", ".prefix", ".languages")):
            out[name] = array
        elif bits == 8:
            out[name], out[name + SCALE] = quantize(array)
        else:
            own = max(4, bits - 1) if _EMBEDDING.search(name) else bits
            out[name], out[name + GROUPS], out[name + SCALE] = pack(_rows(array), own)
            out[name + SHAPE] = np.array([own, *array.shape], np.int32)
    return out


def unpacked(tensors: Tensors, shapes: Shapes) -> dict[str, Array]:
    """Replace each matrix and its scales by a float32 matrix. Those that do not fit each other stay as they are.

    Raises `CheckpointError` for a matrix in 4 to 7 bits whose tensors do not fit each other.
    """
    return {name: np.asarray(array) for name, array in kept(tensors, shapes).items()}


def kept(tensors: Tensors, _: Shapes) -> dict[str, Array]:
    """Replace each matrix and its scales by an `EightBit`, or by floats if these are not finite; see `unpacked`."""
    out = dict(tensors)
    for name, codes in tensors.items():
        scale, groups = tensors.get(name + SCALE), tensors.get(name + GROUPS)
        if groups is not None or (codes.dtype == np.uint8 and name + SHAPE in tensors):
            if missing := [name + part for part in (GROUPS, SCALE, SHAPE) if name + part not in tensors]:
                raise CheckpointError(f"{name} is packed, but {', '.join(missing)} is missing: write the file again")
            matrix = _few_bits(name, *(out.pop(name + part) for part in ("", GROUPS, SCALE, SHAPE)))
        elif scale is not None and _fits(codes, scale):
            matrix = EightBit(name, codes.shape, codes, out.pop(name + SCALE))
        else:
            continue
        # It has what a checkpoint uses of an array.
        out[name] = cast("Array", matrix) if is_finite(matrix.scale) else np.asarray(matrix)
    return out


def quantize(weight: Array) -> tuple[Array, Array]:
    """Round a matrix `[N, K]` or convolution `[O, I, K]` to int8, and the scales float32 `[N, blocks]`.

    A row of a convolution is all inputs of the first tap, then of the next.
    """
    rows = _rows(weight.astype(np.float32))
    blocks = blocks_of(rows)
    # The weight of largest magnitude becomes -128, the one integer without a positive counterpart.
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)
    scale = largest / np.float32(-128)
    integers = np.rint(blocks / np.where(scale == 0, 1, scale)).clip(-128, 127).astype(np.int8)
    return _shaped(integers.reshape(len(rows), -1)[:, : rows.shape[1]], weight.shape), scale[..., 0]


def dequantize(weight: Array, scale: Array) -> Array:
    """The weights that `quantize` stored, float32."""
    rows = _rows(weight)
    with np.errstate(invalid="ignore", over="ignore"):  # a file can hold any numbers: readers check the result
        blocks = blocks_of(rows) * scale.astype(np.float32)[..., None]
    return _shaped(blocks.reshape(len(rows), -1)[:, : rows.shape[1]], weight.shape)


def _few_bits(name: str, codes: Array, groups: Array, scale: Array, form: Array) -> EightBit:
    try:
        if form.ndim != 1 or form.dtype != np.int32 or len(form) < 3 or form.min() < 1:
            raise CheckpointError(f"its {SHAPE} is {form.tolist()}, expected the number of bits and a shape in int32")
        bits, *shape = map(int, form)
        if codes.shape[:1] != (shape[0],):
            found = f"{len(codes)} rows of codes" if codes.ndim else "a single code"
            raise CheckpointError(f"{found}, expected {shape[0]} rows for the shape {shape}")
    except CheckpointError as error:
        raise _broken(name, error) from error
    return EightBit(name, tuple(shape), codes, scale, groups, bits)


def _broken(name: str, error: CheckpointError) -> CheckpointError:
    return CheckpointError(f"{name} cannot be expanded: {error}; download or write the file again")


def _fits(weight: Array, scale: Array) -> bool:
    row = int(np.prod(weight.shape[1:]))
    return weight.dtype == np.int8 and weight.ndim >= 2 and scale.shape == (len(weight), -(-row // BLOCK))


def _rows(weight: Array) -> Array:
    rows: Array = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    return rows


def blocks_of(rows: Array) -> Array:
    """Return rows `[N, K]` as blocks `[N, blocks, BLOCK]`, the last one filled with zeros."""
    if padding := -rows.shape[1] % BLOCK:
        rows = np.pad(rows, [(0, 0), (0, padding)])
    return rows.reshape(len(rows), -1, BLOCK)


def _shaped(rows: Array, shape: tuple[int, ...]) -> Array:
    return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
