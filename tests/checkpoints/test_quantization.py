"""Affine group quantisation: codes within half a step, exact where it must be. (That it equals MLX's: see oracles.)"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slipstream.checkpoints.quantization import GROUP_SIZES, Quantized, dequantize, fits, quantize
from slipstream.errors import CheckpointError

floats = st.floats(-1000, 1000, width=32)
bits = pytest.mark.parametrize("bits", sorted(GROUP_SIZES))


@bits
@given(data=st.data())
def test_no_weight_moves_by_more_than_a_step(bits: int, data: st.DataObject) -> None:
    # Half a step, except for numbers at the end that the codes do not count from: zero falls on a code for their sake.
    group = GROUP_SIZES[bits]
    matrix = data.draw(arrays(np.float32, (3, 2 * group), elements=floats))
    back = dequantize(quantize(matrix, bits), 2 * group)
    groups = matrix.reshape(3, 2, group)
    step = np.ptp(groups, axis=-1, keepdims=True) / (2**bits - 1)
    rounding = 1e-6 * np.abs(groups).max(-1, keepdims=True) + 1e-6
    assert (np.abs(back.reshape(groups.shape) - groups) <= step + rounding).all()


@bits
def test_typical_weights_move_by_half_a_step(bits: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    quantized = quantize(matrix, bits)
    moved = np.abs(dequantize(quantized, 256) - matrix)
    step = np.abs(quantized.scales).repeat(GROUP_SIZES[bits], axis=-1)
    assert (moved > 0.501 * step).mean() < 0.02


@bits
def test_zero_stays_zero(bits: int) -> None:
    matrix = np.random.default_rng(1).standard_normal((4, 128)).astype(np.float32)
    matrix[:, ::3] = 0
    assert np.abs(dequantize(quantize(matrix, bits), 128)[:, ::3]).max() < 1e-6
    assert not dequantize(quantize(np.zeros_like(matrix), bits), 128).any()


@bits
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_shapes_and_types(bits: int, dtype: type) -> None:
    quantized = quantize(np.ones((3, 192), dtype), bits)
    assert quantized.weight.dtype == np.uint32
    assert quantized.weight.shape == (3, 192 * bits // 32)
    assert quantized.scales.shape == quantized.biases.shape == (3, 192 // GROUP_SIZES[bits])
    assert quantized.scales.dtype == quantized.biases.dtype == dtype
    back = dequantize(quantized, 192)
    assert back.dtype == dtype
    assert (back == 1).all()


def test_codes_are_packed_from_the_lowest_bits_up() -> None:
    codes = np.arange(32) % 16
    quantized = quantize((codes - 15.0).astype(np.float32)[None], 4)
    assert quantized.scales[0, 0] == 1
    assert quantized.biases[0, 0] == -15
    assert [hex(word) for word in quantized.weight[0]] == ["0x76543210", "0xfedcba98"] * 2


def test_any_group_that_fits_is_read() -> None:
    matrix = np.random.default_rng(2).standard_normal((2, 128)).astype(np.float32)
    weight, scales, biases = quantize(matrix, 4)
    halves = Quantized(weight, scales.repeat(2, axis=1), biases.repeat(2, axis=1))  # groups of 16
    assert np.array_equal(dequantize(halves, 128), dequantize(Quantized(weight, scales, biases), 128))


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(CheckpointError, match="rows of 42 do not divide into groups of 32: cannot quantise to 4 bits"):
        quantize(np.zeros((2, 42), np.float32), 4)


def test_arrays_that_do_not_belong_together_do_not_fit() -> None:
    weight, scales, biases = quantize(np.ones((2, 128), np.float32), 8)
    assert fits(Quantized(weight, scales, biases), 128)
    for parts, columns in [
        ((weight, scales, biases), 96),
        ((weight.astype(np.int32), scales, biases), 128),
        ((weight[:1], scales, biases), 128),
        ((weight[:, :-1], scales, biases), 128),
        ((weight, scales[:, :1], biases), 128),
        ((weight, scales[0], biases[0]), 128),
    ]:
        assert not fits(Quantized(*parts), columns)
