"""The codec's encoder as a graph: one frame of every slot, samples to tokens.

Shapes: B slots, S samples of a frame, T positions of the Transformer in a frame, K codebooks, D width, H heads,
d head width, C columns of a ring.

Convolutions keep their left context in tails, bound as `tail.NAME` in and `tail.NAME.new` out, which the host copies
back for the slots that advance. The Transformer's rings are bound both in and out and written in place.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from slipstream.backends.onnx import whisper
from slipstream.backends.onnx.graph import Graph, Model
from slipstream.backends.onnx.quantization import Bits
from slipstream.backends.onnx.ring import RingAttention
from slipstream.backends.onnx.rows import Rows, causal_conv, log_mel
from slipstream.backends.onnx.transformer import Quantize, Weights, linear, padded_head_dim, transformer
from slipstream.model.config import CodecConfig
from slipstream.model.numerics import codebook_vectors, mel_front_end


def codec_model(config: CodecConfig, weights: Weights, *, num_codebooks: int, quantize: Quantize = None) -> Model:
    """The graph of one frame, in float32; with `quantize`, a Whisper encoder's matrices are kept in 8 bits.

    Inputs: `pcm` `[B, S]`; `first` bool `[B]`, whether this is a stream's first frame; `mask` `[B, 1, T, C]`, added to
    the scores; `columns` `[B, T, H, 3]`, slot, head and column of each new key; `tail.NAME`, `k.i`, `v.i`.
    SEANet's Transformer: `cos` and `sin` `[B * T, d / 2]` of each position and `row` `[B, T]`, which of those rows is
    whose. A Whisper encoder: see `whisper.encoder`.
    Outputs: `codes` int64 `[B, num_codebooks]`, `tail.NAME.new`, and `k.i.new`, `v.i.new` to be bound where `k.i` and
    `v.i` are.
    """
    graph = Graph("codec")
    samples = 0 if config.whisper else config.frame_samples
    pcm = graph.input("pcm", "float32", ["B", samples or "S"])
    first = graph.input("first", "bool", ["B"])
    x = Rows(pcm, samples, 1)
    bits: Bits | None = None
    if front_end := config.whisper or config.mel:
        x = log_mel(graph, x, mel_front_end(front_end, config.sample_rate))
    if config.whisper:
        bits = 8 if quantize else None
        x = whisper.encoder(graph, x, config.whisper, weights, bits)
    else:
        x = _seanet(graph, x, config, weights)
        attend = RingAttention(graph, config.transformer, padded_head_dim(config.transformer))
        latent = transformer(graph, x.name, weights, config.transformer, prefix="encoder_transformer.", attend=attend)
        x = Rows(latent, config.stride, config.dim)
    if config.stride > 1:
        weight = weights["downsample.weight"]
        x = causal_conv(graph, x, "downsample", weight, None, stride=config.stride, first=first, bits=bits, odd=True)
    codes = _quantizer(graph, graph.reshape(x.name, [-1, config.dim]), config, weights, num_codebooks)
    graph.op("Concat", *codes, axis=1, output="codes")
    graph.output("codes", "int64", ["BF", num_codebooks])
    return graph.finish()


# ------------------------------------------------------------------------------------------------- SEANet


def _seanet(graph: Graph, x: Rows, config: CodecConfig, weights: Weights) -> Rows:
    def conv(x: Rows, name: str, *, stride: int = 1, dilation: int = 1) -> Rows:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return causal_conv(graph, x, name, weight, bias, stride=stride, dilation=dilation)

    def elu(x: Rows) -> Rows:
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
        book = f"{prefix}codebooks.{k}."
        vectors, half_norms = codebook_vectors(
            *(np.asarray(weights[book + part]) for part in ("embedding_sum", "cluster_usage"))
        )
        table = graph.constant(vectors)
        nearness = graph.op("Gemm", residual, table, graph.constant(-half_norms), transB=1)
        code = graph.op("ArgMax", nearness, axis=1, keepdims=1)
        codes.append(code)
        if k + 1 < num_codebooks:
            vector = graph.op("GatherND", table, code)
            residual = graph.op("Sub", residual, vector)
    return codes
