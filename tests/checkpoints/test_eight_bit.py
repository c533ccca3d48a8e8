"""8-bit weights: rounded once, and run by ONNX Runtime as they are stored."""

from __future__ import annotations

import numpy as np
import pytest

from slipstream.backends.onnx import quantization as onnx_quantization
from slipstream.backends.onnx.quantization import Bits
from slipstream.checkpoints import mlx
from slipstream.checkpoints.eight_bit import BLOCK, dequantize, kept, packed, quantize, unpacked
from slipstream.checkpoints.tensors import DTYPES
from slipstream.errors import CheckpointError


@pytest.mark.parametrize("shape", [(5, 300), (4, 128), (3, 7, 3), (6, 256, 2)])
def test_weights_are_rounded_to_a_step_of_their_block(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    integers, scale = quantize(weight)
    assert (integers.dtype, integers.shape) == (np.int8, shape)
    assert scale.shape == (shape[0], -(-int(np.prod(shape[1:])) // BLOCK))
    found = dequantize(integers, scale)
    assert np.abs(found - weight).max() <= np.abs(scale).max() * 1.001  # +128 steps become 127
    again, _ = quantize(found)
    np.testing.assert_array_equal(again, integers)


def test_a_convolutions_rows_are_its_taps_one_after_the_other() -> None:
    weight = np.ones((1, BLOCK, 2), np.float32)
    weight[..., 1] = 100
    _, scale = quantize(np.repeat(weight, 2, axis=0))
    np.testing.assert_allclose(np.abs(scale[0]), [1 / 128, 100 / 128])


def test_a_codecs_decoder_stays_as_it_is() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 4, 3)).astype(np.float32)
    names = ["decoder.model.0.conv.conv.weight", "decoder_transformer.transformer.layers.0.linear1.weight"]
    found = packed(dict.fromkeys([*names, "encoder.conv1.weight"], weight), 5)
    assert all(found[name] is weight for name in names)
    assert found["encoder.conv1.weight"].dtype == np.uint8


def test_a_row_of_zeros_stays_zero() -> None:
    assert (dequantize(*quantize(np.zeros((2, 130), np.float32))) == 0).all()


def test_onnx_runtime_gets_the_stored_integers() -> None:
    integers, scale = quantize(np.random.default_rng(1).standard_normal((8, 384)).astype(np.float32))
    theirs, scales = onnx_quantization.quantize(dequantize(integers, scale), 8)
    np.testing.assert_array_equal(theirs.reshape(8, -1).astype(int) - 128, integers)
    np.testing.assert_allclose(scales, scale, rtol=1e-6)


@pytest.mark.parametrize("bits", [5, 8])
@pytest.mark.parametrize(
    ("shape", "target"), [((8, 384), 8), ((8, 384), 4), ((4, 100), 8), ((4, 100), 4), ((6, 80, 3), 8)]
)
def test_onnx_runtime_needs_no_floats_for_the_stored_integers(shape: tuple[int, ...], bits: int, target: Bits) -> None:
    weight = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    stored = kept(packed({"weight": weight}, bits), {})["weight"]
    rows = np.moveaxis(np.asarray(stored)[..., None], 1, -1).reshape(shape[0], -1)
    for ours, theirs in zip(
        onnx_quantization.quantize(stored, target), onnx_quantization.quantize(rows, target), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_scales_that_are_not_finite_become_floats() -> None:
    stored = packed({"weight": np.ones((4, 64), np.float32)})
    stored["weight_scale"][1] = np.inf
    assert not np.isfinite(kept(stored, {})["weight"][1]).any()


def test_vectors_and_the_quantiser_are_not_rounded_to_8_bits() -> None:
    tensors = {
        "norm.weight": np.ones(4, np.float32),
        "padding": np.ones((1, 1, 4), np.float32),
        "quantizer.semantic.input_proj.weight": np.ones((4, 4), np.float32),
        "quantizer.semantic.codebooks.0.cluster_usage": np.full(4, 1.001, np.float32),
        "linear.weight": np.ones((4, 4), np.float32),
    }
    found = packed(tensors)
    assert found.keys() - tensors.keys() == {"linear.weight_scale"}
    assert found["quantizer.semantic.input_proj.weight"].dtype.name == "bfloat16"
    back = unpacked(found, {})
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["linear.weight", "quantizer.semantic.codebooks.0.embedding_sum", "norm.weight"])
def test_values_that_are_not_finite_are_refused(name: str, bits: int, dtype: str) -> None:
    weight = np.ones((3, 64) if "norm" not in name else 192, DTYPES[dtype])
    weight.flat[[1, 70, 190]] = np.nan, np.inf, -np.inf
    with pytest.raises(CheckpointError, match=f"^{name} cannot be quantised: 3 of 192 values are not finite"):
        packed({"first.weight": np.ones((3, 64), np.float32), name: weight}, bits)
    with pytest.raises(CheckpointError, match=f"^{name} cannot be quantised: 3 of 192 values are not finite"):
        mlx.quantized({name: weight}, bits)
