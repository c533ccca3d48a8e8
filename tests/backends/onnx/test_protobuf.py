"""What we write is what the `onnx` package reads and accepts."""

from __future__ import annotations

import numpy as np
import pytest
from tests.models import CODECS, random_model, stt_config

from slipstream.backends.onnx import protobuf
from slipstream.backends.onnx.codec import codec_model
from slipstream.backends.onnx.graph import Graph, Model

onnx = pytest.importorskip("onnx")


def parse(model: Model):
    return onnx.ModelProto.FromString(model.proto)


def test_every_field_is_read_back():
    graph = Graph("sum")
    x = graph.input("x", "float32", ["B", 3])
    kept = graph.op(
        "Mul", x, graph.constant(np.float32(-2.5), "factor"), domain="some.domain", i=-7, f=0.5, s="é", n=[1, -2]
    )
    graph.op_to("Split", [kept, ""], ["a", "", "c"])
    graph.output("a", "int64", [1, "T"])
    model = parse(graph.finish())
    assert model.ir_version == protobuf.IR_VERSION
    assert {o.domain: o.version for o in model.opset_import} == protobuf.OPSETS
    mul, split = model.graph.node
    assert (mul.op_type, mul.domain, list(mul.input), list(mul.output)) == (
        "Mul",
        "some.domain",
        ["x", "factor"],
        [kept],
    )
    assert {a.name: onnx.helper.get_attribute_value(a) for a in mul.attribute} == {
        "i": -7,
        "f": 0.5,
        "s": "é".encode(),
        "n": [1, -2],
    }
    assert (list(split.input), list(split.output)) == ([kept, ""], ["a", "", "c"])
    assert onnx.numpy_helper.to_array(model.graph.initializer[0]) == np.float32(-2.5)
    dimensions = [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    assert dimensions == [1, "T"]


@pytest.mark.parametrize("codec", CODECS)
def test_the_checker_accepts_the_codec(tmp_path, codec: str):
    # The LM's normalisation is an operator of ONNX Runtime that onnx does not know.
    config = stt_config(codec=codec)
    _, weights = random_model(config)
    codec_model(config.codec, weights, num_codebooks=5).save(tmp_path / "codec.onnx")
    onnx.checker.check_model(str(tmp_path / "codec.onnx"))


def test_weights_are_at_the_offsets_of_the_file(tmp_path):
    graph = Graph("two")
    arrays = [np.arange(500, dtype=np.float32), np.arange(999, dtype=np.uint8) % 7, np.ones((40, 30), np.float16)]
    names = [graph.constant(array) for array in arrays]
    graph.finish().save(tmp_path / "two.onnx")
    loaded = onnx.load(tmp_path / "two.onnx")
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in loaded.graph.initializer}
    for name, array in zip(names, arrays, strict=True):
        np.testing.assert_array_equal(found[name], array)
