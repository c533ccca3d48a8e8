"""Causal convolutions over one frame of every slot, and log-mel bands.

A convolution keeps its left context in a tail, bound as `tail.NAME` in and `tail.NAME.new` out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from slipstream.backends.onnx.graph import Graph
from slipstream.backends.onnx.protobuf import Shape
from slipstream.backends.onnx.quantization import Bits
from slipstream.backends.onnx.transformer import Weight, float32, linear
from slipstream.checkpoints.eight_bit import EightBit
from slipstream.model.numerics import MelFrontEnd

END = np.iinfo(np.int64).max
"""The end of an axis, for `cut`."""


@dataclass(frozen=True)
class Rows:
    """A value `[B, length, channels]`. Time comes before channels, so that a convolution reads whole rows.

    A length of 0 is not known before a run: it grows with the number of frames.
    """

    name: str
    length: int
    channels: int


def causal_conv(
    graph: Graph,
    x: Rows,
    name: str,
    weight_OIK: Weight,
    bias: Weight | None,
    *,
    stride: int = 1,
    dilation: int = 1,
    first: str | None = None,
    bits: Bits | None = None,
    odd: bool = False,
) -> Rows:
    """A causal convolution as one matrix product over all slots and outputs, in float32 or with quantised weights.

    ONNX Runtime's convolution runs slot by slot, which takes three times as long for frames of a few positions.
    `odd`: a run may have an odd number of outputs. The 8-bit kernel multiplies rows in pairs and sums a row without a
    partner in another order, so one more row that nothing reads follows. The outputs are then `[1, B * length, ...]`.
    """
    out_channels, _, kernel = weight_OIK.shape
    tailed = with_tail(graph, x, name, (kernel - 1) * dilation + 1 - stride, first)
    seen = patches(graph, tailed, kernel, stride, dilation)
    flat = graph.reshape(seen.name, [-1, seen.channels]) if seen.length else seen.name
    if bits == 8 and isinstance(weight_OIK, EightBit):
        weight: Weight = weight_OIK  # whose rows are in this order
    else:
        weight = np.asarray(weight_OIK).transpose(0, 2, 1).reshape(out_channels, -1)
    spare = odd and bits is not None
    if spare:
        flat = graph.reshape(flat, [1, -1, seen.channels])
        flat = graph.op("Concat", flat, cut(graph, flat, 0, 1), axis=1)
    if bits is not None or bias is None or not seen.length:
        y = linear(graph, flat, weight, bits=bits)
        if spare:
            y = cut(graph, y, 0, -1)
        if bias is not None:
            y = graph.op("Add", y, graph.constant(float32(bias)))
    else:
        y = graph.op("Gemm", flat, graph.constant(float32(weight).T), graph.constant(float32(bias)))
    y = graph.reshape(y, [-1, seen.length, out_channels]) if seen.length else y
    return Rows(y, seen.length, out_channels)


def with_tail(graph: Graph, x: Rows, name: str, context: int, first: str | None = None) -> Rows:
    """Put the last `context` inputs of the frame before in front of `x`, and keep this frame's for the next.

    With `first`, a stream's first frame has its first input there instead.
    """
    here = graph.reshape(x.name, [-1, x.length, x.channels] if x.length else [0, -1, x.channels])
    if not context:
        return replace(x, name=here)
    shape: Shape = ["B", context, x.channels]
    tail = graph.input(f"tail.{name}", "float32", shape)
    if first is not None:
        tail = graph.op("Where", graph.reshape(first, [-1, 1, 1]), cut(graph, here, 0, 1), tail)
    both = graph.op("Concat", tail, here, axis=1)
    new = f"tail.{name}.new"
    cut(graph, both, -context, END, output=new)
    graph.output(new, "float32", shape)
    return replace(x, name=both, length=x.length + context if x.length else 0)


def patches(graph: Graph, x: Rows, kernel: int, stride: int, dilation: int = 1) -> Rows:
    """Gather the inputs of each output of a convolution: `[B, length, channels] -> [B, outputs, kernel * channels]`."""
    block = math.gcd(kernel, stride) if dilation == 1 else 1
    if block > 1:  # kernel and stride are whole numbers of blocks of inputs
        length, channels = x.length // block, x.channels * block
        x = Rows(graph.reshape(x.name, [-1, length, channels] if length else [0, -1, channels]), length, channels)
        kernel, stride = kernel // block, stride // block
    if kernel == stride == 1:
        return x
    channels = kernel * x.channels
    if not x.length:
        slices = [
            cut(graph, x.name, k * dilation, (k + 1 - kernel) * dilation or END, step=stride) for k in range(kernel)
        ]
        return Rows(graph.op("Concat", *slices, axis=2), 0, channels)
    outputs = (x.length - (kernel - 1) * dilation - 1) // stride + 1
    seen = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation
    return Rows(graph.op("Gather", x.name, graph.constant(seen), axis=1), outputs, channels)


def cut(graph: Graph, x: str, start: int, end: int, *, step: int = 1, output: str | None = None) -> str:
    """Every `step`th element of the second axis, from `start` to before `end`. Negative numbers count from its end."""
    bounds = (graph.constant(np.array([i], np.int64)) for i in (start, end, 1, step))
    return graph.op("Slice", x, *bounds, output=output)


def log_mel(graph: Graph, x: Rows, front_end: MelFrontEnd) -> Rows:
    """Log-mel bands of causal windows, `[B, S, 1] -> [B, S / hop, n_mels]`: see `MelFrontEnd`."""
    window, hop = front_end.fourier.shape[1], front_end.hop
    n_mels, bins = front_end.bands.shape
    tailed = with_tail(graph, x, "mel", front_end.context)
    windows = patches(graph, tailed, window, hop)
    rows = graph.reshape(windows.name, [0, -1, windows.channels])
    products = graph.op("MatMul", rows, graph.constant(front_end.fourier.T))
    spectrum = graph.reshape(products, [0, 0, 2, bins])
    power = graph.op("ReduceSumSquare", spectrum, graph.constant(np.array([2])), keepdims=0)
    mel = graph.op("MatMul", power, graph.constant(front_end.bands.T))
    log = graph.op("Log", graph.op("Max", mel, graph.constant(np.float32(front_end.floor))))
    scaled = graph.op("Mul", log, graph.constant(np.float32(front_end.log_scale / 4)))
    return Rows(graph.op("Add", scaled, graph.constant(np.float32(1))), windows.length, n_mels)
