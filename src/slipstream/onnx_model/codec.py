"""The codec's encoder as a graph: one frame of every slot, samples to tokens.

Shapes: B slots, S samples of a frame, T positions of the Transformer in a frame, K codebooks, D width, H heads,
d head width, C columns of a ring.

Convolutions keep their left context in tails, bound as `tail.NAME` in and `tail.NAME.new` out, which the host copies
back for the slots that advance. The Transformer's rings are bound both in and out and written in place.
"""

from __future__ import annotations

import math

import numpy as np

from slipstream.config import CodecConfig, MelConfig
from slipstream.onnx_model.graph import Array, Graph, Model
from slipstream.onnx_model.transformer import Weights, float32, linear, padded_head_dim, transformer

CODEBOOK_EPS = 1e-5


def codec_model(config: CodecConfig, weights: Weights, *, num_codebooks: int) -> Model:
    """The graph of one frame, in float32.

    Inputs: `pcm` `[B, S]`; `first` bool `[B]`, whether this is a stream's first frame; `cos` and `sin`
    `[B * T, d / 2]` of each position and `row` `[B, T]`, which of those rows is whose; `mask` `[B, 1, T, C]`, added to
    the scores; `columns` `[B, T, H, 3]`, slot, head and column of each new key; `tail.NAME`, `k.i`, `v.i`.
    Outputs: `codes` int64 `[B, num_codebooks]`, `tail.NAME.new`, and `k.i.new`, `v.i.new` to be bound where `k.i` and
    `v.i` are.
    """
    graph = Graph("codec")
    x = graph.input("pcm", "float32", ["B", config.frame_samples])
    first = graph.input("first", "bool", ["B"])
    x = graph.reshape(x, [0, 1, -1])
    if config.mel:
        x = _log_mel(graph, x, config.mel, config.sample_rate)
    x = _seanet(graph, x, config, weights)
    x = graph.op("Transpose", x, perm=[0, 2, 1])
    x = transformer(
        graph, x, weights, config.transformer, prefix="encoder_transformer.", attend=_RingAttention(graph, config)
    )
    if config.stride > 1:
        x = graph.op("Transpose", x, perm=[0, 2, 1])
        x = _tailed(graph, x, "downsample", config.dim, config.stride, first=first)
        x = graph.op("Conv", x, graph.constant(float32(weights["downsample.weight"])), strides=[config.stride])
    x = graph.reshape(x, [-1, config.dim])
    codes = _quantizer(graph, x, config, weights, num_codebooks)
    graph.op("Concat", *codes, axis=1, output="codes")
    graph.output("codes", "int64", ["B", num_codebooks])
    return graph.finish()


# ------------------------------------------------------------------------------------------ convolutions


def _seanet(graph: Graph, x: str, config: CodecConfig, weights: Weights) -> str:
    x = _conv(graph, x, "encoder.conv_in", weights)
    for i, ratio in enumerate(reversed(config.ratios)):
        stage = f"encoder.stages.{i}"
        for j in range(config.num_residual_layers):
            residual = f"{stage}.residuals.{j}"
            y = graph.op("Elu", x)
            y = _conv(graph, y, f"{residual}.conv1", weights, dilation=config.dilation_base**j)
            y = _conv(graph, graph.op("Elu", y), f"{residual}.conv2", weights)
            x = graph.op("Add", x, y)
        x = _conv(graph, graph.op("Elu", x), f"{stage}.resample", weights, stride=ratio)
    return _conv(graph, graph.op("Elu", x), "encoder.conv_out", weights)


def _conv(graph: Graph, x: str, name: str, weights: Weights, *, stride: int = 1, dilation: int = 1) -> str:
    weight, bias = float32(weights[f"{name}.weight"]), float32(weights[f"{name}.bias"])
    _, in_channels, kernel = weight.shape
    x = _tailed(graph, x, name, in_channels, (kernel - 1) * dilation + 1 - stride)
    return graph.op("Conv", x, graph.constant(weight), graph.constant(bias), strides=[stride], dilations=[dilation])


def _tailed(graph: Graph, x: str, name: str, channels: int, context: int, *, first: str | None = None) -> str:
    """Put the last `context` inputs of the frame before in front of `x`, and keep this frame's for the next.

    With `first`, a stream's first frame has its first input there instead.
    """
    if not context:
        return x
    tail = graph.input(f"tail.{name}", "float32", ["B", channels, context])
    if first is not None:
        replicated = graph.op("Slice", x, *(graph.constant(np.array([i])) for i in (0, 1, 2)))
        tail = graph.op("Where", graph.reshape(first, [-1, 1, 1]), replicated, tail)
    x = graph.op("Concat", tail, x, axis=2)
    start, end, axis = -context, np.iinfo(np.int64).max, 2
    new = f"tail.{name}.new"
    graph.op("Slice", x, *(graph.constant(np.array([i])) for i in (start, end, axis)), output=new)
    graph.output(new, "float32", ["B", channels, context])
    return x


def _log_mel(graph: Graph, x: str, config: MelConfig, sample_rate: int) -> str:
    bins = config.window // 2 + 1
    x = _tailed(graph, x, "mel", 1, config.window - config.hop)
    spectrum = graph.op("Conv", x, graph.constant(_fourier(config)), strides=[config.hop])
    spectrum = graph.reshape(spectrum, [0, 2, bins, -1])
    power = graph.op("ReduceSumSquare", spectrum, graph.constant(np.array([1])), keepdims=0)
    bands = graph.op("MatMul", graph.constant(_mel_bands(config, sample_rate)), power)
    log_mel = graph.op("Log", graph.op("Max", bands, graph.constant(np.float32(1e-5))))
    shifted = graph.op("Add", log_mel, graph.constant(np.float32(4)))
    return graph.op("Mul", shifted, graph.constant(np.float32(0.25)))


def _fourier(config: MelConfig) -> Array:
    """Windowed cosines, then sines, `[2 * bins, 1, window]`."""
    time = np.arange(config.window)
    window = 0.5 - 0.5 * np.cos(2 * math.pi * time / config.window)
    angle = 2 * math.pi * np.arange(config.window // 2 + 1)[:, None] * time / config.window
    return float32((np.concatenate([np.cos(angle), np.sin(angle)]) * window)[:, None])


def _mel_bands(config: MelConfig, sample_rate: int) -> Array:
    """Triangles `[bands, bins]` on the mel scale 2595 log10(1 + f / 700), each of height one."""
    low, high = (2595 * math.log10(1 + frequency / 700) for frequency in (config.f_min, config.f_max))
    edges = 700 * (10 ** (np.linspace(low, high, config.n_mels + 2) / 2595) - 1)
    bins = np.arange(config.window // 2 + 1) * sample_rate / config.window
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return float32(np.maximum(np.minimum(rising, falling), 0))


# -------------------------------------------------------------------------------------------- attention


class _RingAttention:
    """Attention of a frame's T positions over a ring, which holds them too: position p lies in column p mod C."""

    def __init__(self, graph: Graph, config: CodecConfig) -> None:
        self.config = config.transformer
        self.T = config.stride
        self.mask = graph.input("mask", "float32", ["B", 1, self.T, "C"])
        self.columns = graph.input("columns", "int64", ["B", self.T, self.config.num_heads, 3])

    def __call__(self, graph: Graph, layer: int, q: str, k: str, v: str) -> str:
        H, d = self.config.num_heads, padded_head_dim(self.config)
        keys = self._write(graph, f"k.{layer}", k)
        values = self._write(graph, f"v.{layer}", v)
        q = graph.op("Transpose", graph.reshape(q, [0, self.T, H, d]), perm=[0, 2, 1, 3])
        scores = graph.op("FusedMatMul", q, keys, domain="com.microsoft", transB=1, alpha=self.config.head_dim**-0.5)
        weights = graph.op("Softmax", graph.op("Add", scores, self.mask), axis=-1)
        y = graph.op("MatMul", weights, values)
        return graph.reshape(graph.op("Transpose", y, perm=[0, 2, 1, 3]), [0, self.T, H * d])

    def _write(self, graph: Graph, name: str, new: str) -> str:
        H, d = self.config.num_heads, padded_head_dim(self.config)
        ring = graph.input(name, "float32", ["B", H, "C", d])
        written = graph.op("ScatterND", ring, self.columns, graph.reshape(new, [0, self.T, H, d]), output=f"{name}.new")
        graph.output(written, "float32", ["B", H, "C", d])
        return written


# -------------------------------------------------------------------------------------------- quantiser


def _quantizer(graph: Graph, x_BD: str, config: CodecConfig, weights: Weights, num_codebooks: int) -> list[str]:
    codes = _residual_vq(graph, x_BD, weights, "quantizer.semantic.", min(config.num_semantic, num_codebooks))
    if num_codebooks > config.num_semantic:
        codes += _residual_vq(graph, x_BD, weights, "quantizer.acoustic.", num_codebooks - config.num_semantic)
    return codes


def _residual_vq(graph: Graph, x_BD: str, weights: Weights, prefix: str, num_codebooks: int) -> list[str]:
    residual = linear(graph, x_BD, weights[prefix + "input_proj.weight"])
    codes = []
    for k in range(num_codebooks):
        usage = float32(weights[f"{prefix}codebooks.{k}.cluster_usage"])
        vectors = float32(weights[f"{prefix}codebooks.{k}.embedding_sum"]) / np.maximum(usage, CODEBOOK_EPS)[:, None]
        table = graph.constant(vectors)
        # |x - c|^2 / 2 = |c|^2 / 2 - x.c + a term of x alone
        half_norms = graph.constant(np.square(vectors).sum(axis=1) / -2)
        nearness = graph.op("Gemm", residual, table, half_norms, transB=1)
        code = graph.op("ArgMax", nearness, axis=1, keepdims=1)
        codes.append(code)
        if k + 1 < num_codebooks:
            vector = graph.op("GatherND", table, code)
            residual = graph.op("Sub", residual, vector)
    return codes
