"""Quantised weights: how far they are off, and that ONNX Runtime reads them as we do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.backends.onnx.graph import Graph
from slipstream.backends.onnx.inference import open_session
from slipstream.backends.onnx.quantization import BLOCK, Bits, dequantize, quantize
from slipstream.backends.onnx.transformer import linear

pytestmark = pytest.mark.parametrize("bits", [4, 8])


@given(seed=st.integers(0, 1000), rows=st.integers(1, 9), columns=st.integers(1, 300), spread=st.floats(1e-3, 1e3))
def test_no_weight_is_off_by_more_than_a_step(bits: Bits, seed: int, rows: int, columns: int, spread: float):
    weight = (spread * np.random.default_rng(seed).standard_normal((rows, columns))).astype(np.float32)
    packed, scales = quantize(weight, bits)
    scale = np.repeat(scales, BLOCK[bits], axis=1)[:, :columns]
    step = np.abs(scale)
    error = np.abs(dequantize(packed, scales, bits, columns) - weight)
    # Half a step, but a weight as large as the block's largest and of the other sign is cut to the last integer.
    assert (error <= step * 1.0001).all()
    assert (error <= step * 0.5001)[weight / scale < 2 ** (bits - 1) - 0.5].all()


def test_whole_multiples_of_a_step_are_exact(bits: Bits):
    half = 2 ** (bits - 1)
    integers = np.random.default_rng(0).integers(-half, half, (5, 3 * BLOCK[bits]))
    integers[:, :: BLOCK[bits]] = -half
    weight = (integers * 0.125).astype(np.float32)
    np.testing.assert_array_equal(dequantize(*quantize(weight, bits), bits, weight.shape[1]), weight)


def test_a_block_of_zeros_stays_zero(bits: Bits):
    weight = np.zeros((2, 40), np.float32)
    assert not dequantize(*quantize(weight, bits), bits, 40).any()


@pytest.mark.parametrize("columns", [42, 256])
def test_onnx_runtime_multiplies_by_the_dequantised_weights(bits: Bits, columns: int):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((24, columns)).astype(np.float32)
    x = rng.standard_normal((3, columns)).astype(np.float32)
    graph = Graph("linear")
    y = linear(graph, graph.input("x", "float32", ["B", columns]), weight, bits=bits)
    graph.output(y, "float32", ["B", 24])
    (found,) = open_session(graph.finish(), threads=1).run(None, {"x": x})
    expected = x @ dequantize(*quantize(weight, bits), bits, columns).T
    # The inputs are rounded to 8 bits as well: a step of each block is its largest over 127.
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
