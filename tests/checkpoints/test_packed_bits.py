"""4 to 7 bits per weight: small, close to the weights, and the same integers in every backend."""

from __future__ import annotations

import numpy as np
import pytest

from slipstream.backends.onnx import quantization as onnx_quantization
from slipstream.checkpoints.eight_bit import EightBit, dequantize, kept, packed, quantize, unpacked
from slipstream.checkpoints.packed_bits import BITS, BLOCK, GROUP, Packed, expand, pack
from slipstream.checkpoints.tensors import Array
from slipstream.errors import CheckpointError

every_size = pytest.mark.parametrize("bits", BITS)


def gaussian(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def slowly_expanded(stored: Packed, bits: int, columns: int) -> Array:
    """The definition of the format, one weight after the other."""
    out = np.zeros((len(stored.codes), columns), int)
    for row, column in np.ndindex(out.shape):
        stream = int.from_bytes(stored.codes[row].tobytes(), "little")
        code = (stream >> (bits * column) & 2**bits - 1) - 2 ** (bits - 1)
        group = column // GROUP
        out[row, column] = code * ((int(stored.groups[row, group // 2]) >> 4 * (group % 2) & 15) + 1)
    return out


@every_size
@pytest.mark.parametrize("columns", [1, 31, 40, 160, 300])
def test_expansion_follows_the_definition(bits: int, columns: int) -> None:
    stored = pack(gaussian(3, columns), bits)
    integers = expand(stored, bits, columns)
    assert integers.dtype == np.int8
    np.testing.assert_array_equal(integers, slowly_expanded(stored, bits, columns))


@pytest.mark.parametrize(("bits", "largest"), [(4, 0.088), (5, 0.0445), (6, 0.024), (7, 0.013)])
def test_the_error_on_gaussian_weights_is_below_that_of_naive_rounding(bits: int, largest: float) -> None:
    weight = gaussian(256, 512)
    stored = pack(weight, bits)
    error = np.sqrt(np.square(dequantize(expand(stored, bits, 512), stored.scale) - weight).mean())
    blocks = weight.reshape(-1, BLOCK)
    step = np.abs(blocks).max(axis=-1, keepdims=True) / (2 ** (bits - 1) - 1)
    naive = np.sqrt(np.square(np.rint(blocks / step) * step - blocks).mean())
    assert error < largest
    assert error < naive * {4: 0.75, 5: 0.82, 6: 0.9, 7: 1}[bits]


@every_size
def test_the_size_is_a_quarter_bit_more_than_the_codes(bits: int) -> None:
    assert sum(part.nbytes for part in pack(gaussian(64, 512), bits)) * 8 == (bits + 0.25) * 64 * 512


@every_size
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_every_backend_computes_with_the_same_integers(bits: int, scale: float) -> None:
    stored = pack(gaussian(16, 384) * np.float32(scale), bits)
    integers = expand(stored, bits, 384)
    weight = dequantize(integers, stored.scale)
    again, scales = quantize(weight)
    np.testing.assert_array_equal(again, integers)
    np.testing.assert_array_equal(scales, stored.scale.astype(np.float32))
    theirs, scales = onnx_quantization.quantize(weight, 8)
    np.testing.assert_array_equal(theirs.reshape(16, -1).astype(int) - 128, integers)
    np.testing.assert_array_equal(scales, stored.scale.astype(np.float32))


@every_size
def test_zeros_and_blocks_with_a_single_weight_are_exact(bits: int) -> None:
    weight = np.zeros((2, 300), np.float32)
    weight[1, [5, 140, 299]] = [-2.0, 0.5, 1.0]
    stored = pack(weight, bits)
    np.testing.assert_array_equal(dequantize(expand(stored, bits, 300), stored.scale), weight)


@pytest.mark.parametrize("shape", [(5, 300), (4, 128), (3, 7, 3), (6, 256, 2)])
def test_a_file_holds_the_shape_and_the_8_bit_form(shape: tuple[int, ...]) -> None:
    weight = gaussian(*shape)
    stored = packed({"a.weight": weight, "a.bias": np.ones(5, np.float32)}, 5)
    assert stored.keys() == {"a.weight", "a.weight_groups", "a.weight_scale", "a.weight_shape", "a.bias"}
    found, floats = kept(stored, {}), unpacked(stored, {})
    assert found.keys() == floats.keys() == {"a.weight", "a.bias"}
    matrix = found["a.weight"]
    assert isinstance(matrix, EightBit)
    assert (matrix.shape, matrix.size, matrix.scale.shape) == (shape, weight.size, quantize(weight)[1].shape)
    assert np.sqrt(np.square(floats["a.weight"] - weight).mean()) < 0.05
    np.testing.assert_array_equal(matrix, floats["a.weight"])
    rows = np.moveaxis(quantize(floats["a.weight"])[0], 1, -1).reshape(shape[0], -1)
    np.testing.assert_array_equal(matrix.rows(), rows)


@pytest.mark.parametrize(("bits", "table"), [(7, 6), (5, 4), (4, 4)])
def test_embedding_tables_have_one_bit_less(bits: int, table: int) -> None:
    names = ("text_emb.weight", "emb.3.weight", "depformer_text_emb.weight", "text_linear.weight", "member.weight")
    stored = packed({name: gaussian(4, 64) for name in names}, bits)
    assert [stored[f"{name}_shape"][0] for name in names] == [table, table, table, bits, bits]


def test_tensors_that_do_not_fit_are_refused_by_name() -> None:
    stored = packed({"a": gaussian(4, 320)}, 5)
    high = stored["a_groups"].copy()
    high[3, 1] = 0x80
    for part, array, message in (
        ("a", stored["a"][:, :-5], r"codes are uint8 \[4, 195\], expected uint8 \[4, 200\] for 5 bits and rows of 320"),
        ("a", stored["a"][:-1], "3 rows of codes, expected 4"),
        ("a", np.array(1, np.uint8), "a single code, expected 4 rows"),
        ("a", stored["a"].astype(np.int16), "codes are int16"),
        ("a_groups", stored["a_groups"][:, 1:], r"groups are uint8 \[4, 4\], expected uint8 \[4, 5\]"),
        ("a_groups", high, "a multiplier is 9, expected 1 to 8 for 5 bits"),
        ("a_scale", stored["a_scale"][:, :1], r"scale are bfloat16 \[4, 1\], expected bfloat16 \[4, 3\]"),
        ("a_shape", np.array([3, 4, 320], np.int32), "3 bits per weight, expected 4 to 7"),
        ("a_shape", np.array([6, 4, 320], np.int32), "for 6 bits and rows of 320"),
        ("a_shape", np.array([5, 4, 2**31 - 1, 2**31 - 1], np.int32), "for 5 bits and rows of 4611686014132420609"),
        ("a_shape", np.array([5, 4, -1], np.int32), r"its _shape is \[5, 4, -1\]"),
        ("a_shape", np.array([5], np.int32), r"its _shape is \[5\]"),
    ):
        with pytest.raises(CheckpointError, match=f"a cannot be expanded: .*{message}"):
            unpacked({**stored, part: array}, {})
    for part in ("a_groups", "a_scale", "a_shape"):
        with pytest.raises(CheckpointError, match=f"a is packed, but {part} is missing"):
            unpacked({name: array for name, array in stored.items() if name != part}, {})


def test_another_number_of_bits_is_refused() -> None:
    with pytest.raises(CheckpointError, match="cannot pack weights into 3 bits: expected 4 to 7"):
        pack(gaussian(2, 64), 3)
