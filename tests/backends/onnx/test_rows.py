"""Convolutions over frames: what a frame gives does not depend on the frames that are computed with it."""

from __future__ import annotations

import numpy as np
import pytest

from slipstream.backends.onnx.graph import Graph
from slipstream.backends.onnx.inference import open_session
from slipstream.backends.onnx.rows import Rows, causal_conv

CHANNELS, STRIDE, WIDTH = 64, 4, 48


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_frames_of_a_block_have_the_bits_of_single_frames_with_8_bit_weights(slots: int):
    random = np.random.default_rng(0)
    weight_OIK = random.standard_normal((WIDTH, CHANNELS, 2 * STRIDE)).astype(np.float32)
    graph = Graph("convolution")
    x = Rows(graph.input("x", "float32", ["B", "T", CHANNELS]), 0, CHANNELS)
    y = causal_conv(graph, x, "conv", weight_OIK, None, stride=STRIDE, bits=8, odd=True)
    graph.op("Reshape", y.name, graph.constant(np.array([-1, WIDTH])), output="y")
    graph.output("y", "float32", ["BF", WIDTH])
    session = open_session(graph.finish(), threads=1)
    x_TC = random.standard_normal((8 * STRIDE, CHANNELS)).astype(np.float32)
    tail = np.zeros((slots, STRIDE, CHANNELS), np.float32)
    single = []
    for frame_TC in x_TC.reshape(8, STRIDE, CHANNELS):
        frames = np.repeat(frame_TC[None], slots, axis=0)
        y_BO, tail = session.run(["y", "tail.conv.new"], {"x": frames, "tail.conv": tail})
        assert (y_BO == y_BO[0]).all()
        single.append(y_BO[0])
    for frames in range(1, 9):
        block_1TC = x_TC[None, : frames * STRIDE]
        (block,) = session.run(["y"], {"x": block_1TC, "tail.conv": np.zeros_like(tail[:1])})
        np.testing.assert_array_equal(block, np.stack(single[:frames]))
