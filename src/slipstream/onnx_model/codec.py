"""The codec's encoder as a graph: one frame of every slot, samples to tokens.

Shapes: B slots, S samples of a frame, T positions of the Transformer in a frame, K codebooks, D width, H heads,
d head width, C columns of a ring.

Convolutions keep their left context in tails, bound as `tail.NAME` in and `tail.NAME.new` out, which the host copies
back for the slots that advance. The Transformer's rings are bound both in and out and written in place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from slipstream.config import CodecConfig, MelConfig
from slipstream.onnx_model.graph import Array, Graph, Model
from slipstream.onnx_model.protobuf import Shape
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
    pcm = graph.input("pcm", "float32", ["B", config.frame_samples])
    first = graph.input("first", "bool", ["B"])
    x = _Sequence(pcm, config.frame_samples, 1)
    if config.mel:
        x = _log_mel(graph, x, config.mel, config.sample_rate)
    x = _seanet(graph, x, config, weights)
    attend = _RingAttention(graph, config)
    latent = transformer(graph, x.name, weights, config.transformer, prefix="encoder_transformer.", attend=attend)
    if config.stride > 1:
        x = _Sequence(latent, config.stride, config.dim)
        weight = weights["downsample.weight"]
        latent = _conv(graph, x, "downsample", weight, None, stride=config.stride, first=first).name
    codes = _quantizer(graph, graph.reshape(latent, [-1, config.dim]), config, weights, num_codebooks)
    graph.op("Concat", *codes, axis=1, output="codes")
    graph.output("codes", "int64", ["B", num_codebooks])
    return graph.finish()


# ------------------------------------------------------------------------------------------ convolutions


@dataclass(frozen=True)
class _Sequence:
    """A value `[B, length, channels]`: time before channels, so that what a convolution sees is whole rows."""

    name: str
    length: int
    channels: int


def _seanet(graph: Graph, x: _Sequence, config: CodecConfig, weights: Weights) -> _Sequence:
    def conv(x: _Sequence, name: str, *, stride: int = 1, dilation: int = 1) -> _Sequence:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return _conv(graph, x, name, weight, bias, stride=stride, dilation=dilation)

    def elu(x: _Sequence) -> _Sequence:
        return replace(x, name=graph.op("Elu", x.name))

    x = conv(x, "encoder.conv_in")
    for i, ratio in enumerate(reversed(config.ratios)):
        stage = f"encoder.stages.{i}"
        for j in range(config.num_residual_layers):
            residual = f"{stage}.residuals.{j}"
            y = conv(elu(x), f"{residual}.conv1", dilation=config.dilation_base**j)
            y = conv(elu(y), f"{residual}.conv2")
            x = replace(x, name=graph.op("Add", x.name, y.name))
        x = conv(elu(x), f"{stage}.resample", stride=ratio)
    return conv(elu(x), "encoder.conv_out")


def _conv(
    graph: Graph,
    x: _Sequence,
    name: str,
    weight_OIK: Array,
    bias: Array | None,
    *,
    stride: int = 1,
    dilation: int = 1,
    first: str | None = None,
) -> _Sequence:
    """A causal convolution as one matrix product over all slots and outputs.

    ONNX Runtime's own convolves slot by slot: for a frame of a few positions that took three times as long.
    """
    out_channels, _, kernel = weight_OIK.shape
    tailed = _tailed(graph, x, name, (kernel - 1) * dilation + 1 - stride, first)
    patches = _patches(graph, tailed, kernel, stride, dilation)
    weight_KI_O = graph.constant(float32(weight_OIK).transpose(2, 1, 0).reshape(-1, out_channels))
    inputs = [graph.reshape(patches.name, [-1, patches.channels]), weight_KI_O]
    if bias is not None:
        inputs.append(graph.constant(float32(bias)))
    y = graph.reshape(graph.op("Gemm", *inputs), [-1, patches.length, out_channels])
    return _Sequence(y, patches.length, out_channels)


def _tailed(graph: Graph, x: _Sequence, name: str, context: int, first: str | None = None) -> _Sequence:
    """Put the last `context` inputs of the frame before in front of `x`, and keep this frame's for the next.

    With `first`, a stream's first frame has its first input there instead.
    """
    here = graph.reshape(x.name, [-1, x.length, x.channels])
    if not context:
        return replace(x, name=here)
    shape: Shape = ["B", context, x.channels]
    tail = graph.input(f"tail.{name}", "float32", shape)
    if first is not None:
        tail = graph.op("Where", graph.reshape(first, [-1, 1, 1]), _slice(graph, here, 0, 1), tail)
    both = graph.op("Concat", tail, here, axis=1)
    new = f"tail.{name}.new"
    _slice(graph, both, x.length, x.length + context, output=new)
    graph.output(new, "float32", shape)
    return replace(x, name=both, length=x.length + context)


def _patches(graph: Graph, x: _Sequence, kernel: int, stride: int, dilation: int = 1) -> _Sequence:
    """What each output of a convolution sees: `[B, length, channels] -> [B, outputs, kernel * channels]`."""
    if kernel == stride == 1:
        return x
    outputs = (x.length - (kernel - 1) * dilation - 1) // stride + 1
    seen = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation
    return _Sequence(graph.op("Gather", x.name, graph.constant(seen), axis=1), outputs, kernel * x.channels)


def _slice(graph: Graph, x: str, start: int, end: int, *, output: str | None = None) -> str:
    """Positions `start` to `end` of `[B, length, channels]`."""
    return graph.op("Slice", x, *(graph.constant(np.array([i])) for i in (start, end, 1)), output=output)


def _log_mel(graph: Graph, x: _Sequence, config: MelConfig, sample_rate: int) -> _Sequence:
    tailed = _tailed(graph, x, "mel", config.window - config.hop)
    # A window is some whole blocks of samples, and so is a hop.
    block = math.gcd(config.window, config.hop)
    blocks = _Sequence(graph.reshape(tailed.name, [-1, tailed.length // block, block]), tailed.length // block, block)
    windows = _patches(graph, blocks, config.window // block, config.hop // block)
    spectrum = graph.op("MatMul", graph.reshape(windows.name, [-1, windows.channels]), graph.constant(_fourier(config)))
    spectrum = graph.reshape(spectrum, [-1, 2, config.window // 2 + 1])
    power = graph.op("ReduceSumSquare", spectrum, graph.constant(np.array([1])), keepdims=0)
    bands = graph.op("MatMul", power, graph.constant(_mel_bands(config, sample_rate)))
    log_mel = graph.op("Log", graph.op("Max", bands, graph.constant(np.float32(1e-5))))
    shifted = graph.op("Add", log_mel, graph.constant(np.float32(4)))
    return _Sequence(graph.op("Mul", shifted, graph.constant(np.float32(0.25))), windows.length, config.n_mels)


def _fourier(config: MelConfig) -> Array:
    """Windowed cosines, then sines, `[window, 2 * bins]`."""
    time = np.arange(config.window)
    window = 0.5 - 0.5 * np.cos(2 * math.pi * time / config.window)
    angle = 2 * math.pi * np.arange(config.window // 2 + 1)[:, None] * time / config.window
    return float32((np.concatenate([np.cos(angle), np.sin(angle)]) * window).T)


def _mel_bands(config: MelConfig, sample_rate: int) -> Array:
    """Triangles `[bins, bands]` on the mel scale 2595 log10(1 + f / 700), each of height one."""
    low, high = (2595 * math.log10(1 + frequency / 700) for frequency in (config.f_min, config.f_max))
    edges = 700 * (10 ** (np.linspace(low, high, config.n_mels + 2) / 2595) - 1)
    bins = np.arange(config.window // 2 + 1) * sample_rate / config.window
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return float32(np.maximum(np.minimum(rising, falling), 0).T)


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
