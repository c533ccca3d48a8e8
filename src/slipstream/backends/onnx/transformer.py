"""Transformer layers as graph nodes, shared by the codec and the LM.

Shapes: B slots, T positions of one step, D width, H heads, d head width, C columns of a cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from slipstream.backends.onnx.graph import Array, Graph
from slipstream.backends.onnx.quantization import BLOCK, Bits, quantize
from slipstream.checkpoints.eight_bit import EightBit
from slipstream.model.config import TransformerConfig
from slipstream.model.numerics import LAYER_NORM_EPS, RMS_EPS

Weight = Array | EightBit
Weights = Mapping[str, Weight]
Quantize = Literal["int8", "int4"] | None

CONTRIB = "com.microsoft"

HEAD_MULTIPLE = 8
"""GroupQueryAttention takes head widths of this multiple; narrower heads are padded with zeros."""

_INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level: inputs in 8 bits too, a scale for each block

Attend = Callable[[Graph, int, str, str, str], str]
"""Adds a layer's attention: graph, layer, rotated q, rotated k and v, all `[B, T, H * d]`; returns `[B, T, H * d]`."""


def padded_head_dim(config: TransformerConfig) -> int:
    """Width of a head in the graph, d."""
    return -(-config.head_dim // HEAD_MULTIPLE) * HEAD_MULTIPLE


def pad_heads(weight: Weight, config: TransformerConfig, axis: int = 0) -> Weight:
    """Add zeros to each head of a weight or bias, along the axis of size heads * head_dim.

    Axis 0 is the output of a linear layer, axis 1 its input.
    """
    padding = padded_head_dim(config) - config.head_dim
    if padding == 0:
        return weight
    before, after = weight.shape[:axis], weight.shape[axis + 1 :]
    heads = float32(weight).reshape(*before, -1, config.head_dim, *after)
    width = [(0, 0)] * heads.ndim
    width[axis + 1] = (0, padding)
    return np.pad(heads, width).reshape(*before, -1, *after)


def float32(array: Weight) -> Array:
    return np.asarray(array, np.float32)


def linear(graph: Graph, x: str, *weights_NK: Weight, bits: Bits | None = None) -> str:
    """`[..., K] -> [..., N]`, the weight in float32 or quantised. N is that of all weights, one after another."""
    if bits is None:
        return graph.op("MatMul", x, graph.constant(_joined([float32(weight) for weight in weights_NK]).T))
    packed, scales = map(_joined, zip(*(quantize(weight, bits) for weight in weights_NK), strict=True))
    return graph.op(
        "MatMulNBits",
        x,
        graph.constant(packed),
        graph.constant(scales),
        domain=CONTRIB,
        N=len(packed),
        K=math.prod(weights_NK[0].shape[1:]),
        bits=bits,
        block_size=BLOCK[bits],
        accuracy_level=_INT8_ACTIVATIONS,
    )


def transformer(
    graph: Graph,
    x_BTD: str,
    weights: Weights,
    config: TransformerConfig,
    *,
    prefix: str,
    attend: Attend,
    bits: Bits | None = None,
) -> str:
    """Add a whole stack: `[B, T, D] -> [B, T, D]`."""
    rope = _RotaryInputs(graph, config)
    for i in range(config.num_layers):
        layer = {name: weights[f"{prefix}layers.{i}.{name}"] for name in _layer_names(config)}
        h = norm(graph, x_BTD, layer, "norm1", config)
        width = config.num_heads * padded_head_dim(config)
        qkv = linear(graph, h, pad_heads(layer["attn.in_proj.weight"], config), bits=bits)
        qk, v = graph.split(qkv, [2 * width, width])
        q, k = graph.split(rope.rotate(qk), [width, width])
        y = attend(graph, i, q, k, v)
        y = linear(graph, y, pad_heads(layer["attn.out_proj.weight"], config, axis=1), bits=bits)
        x_BTD = graph.op("Add", x_BTD, _scale(graph, y, layer.get("scale1")))
        h = norm(graph, x_BTD, layer, "norm2", config)
        y = feed_forward(graph, h, layer, config, bits)
        x_BTD = graph.op("Add", x_BTD, _scale(graph, y, layer.get("scale2")))
    return x_BTD


def norm(graph: Graph, x: str, weights: Weights, name: str, config: TransformerConfig) -> str:
    weight = graph.constant(float32(weights[f"{name}.weight"]))
    if config.norm == "rms_norm":
        return graph.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=RMS_EPS)
    bias = graph.constant(float32(weights[f"{name}.bias"]))
    return graph.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=LAYER_NORM_EPS)


def feed_forward(graph: Graph, x: str, layer: Weights, config: TransformerConfig, bits: Bits | None) -> str:
    x = linear(graph, x, layer["ffn.linear_in.weight"], bits=bits)
    if config.gated:
        gate, value = graph.split(x, [config.ffn_dim, config.ffn_dim])
        x = graph.op("Mul", graph.op("QuickGelu", gate, domain=CONTRIB, alpha=1.0), value)  # SiLU at alpha 1
    else:
        x = graph.op("Gelu", x, domain=CONTRIB)
    return linear(graph, x, layer["ffn.linear_out.weight"], bits=bits)


class _RotaryInputs:
    """The rotary embedding of a graph: angles come from the host, one row for each position of each slot."""

    def __init__(self, graph: Graph, config: TransformerConfig) -> None:
        self.graph = graph
        self.heads = 2 * config.num_heads
        half = padded_head_dim(config) // 2
        self.cos = graph.input("cos", "float32", ["BT", half])
        self.sin = graph.input("sin", "float32", ["BT", half])
        self.row = graph.input("row", "int64", ["B", "T"])

    def rotate(self, qk: str) -> str:
        """Turn neighbouring pairs of each head of `[B, T, 2 * H * d]` (rotary embedding, arXiv:2104.09864)."""
        return self.graph.op(
            "RotaryEmbedding",
            qk,
            self.row,
            self.cos,
            self.sin,
            domain=CONTRIB,
            interleaved=1,
            num_heads=self.heads,
            rotary_embedding_dim=0,
        )


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _layer_names(config: TransformerConfig) -> list[str]:
    names = ["attn.in_proj.weight", "attn.out_proj.weight", "ffn.linear_in.weight", "ffn.linear_out.weight"]
    parts = ["weight"] if config.norm == "rms_norm" else ["weight", "bias"]
    names += [f"{norm}.{part}" for norm in ("norm1", "norm2") for part in parts]
    return names + (["scale1", "scale2"] if config.layer_scale else [])


def _scale(graph: Graph, y: str, scale: Weight | None) -> str:
    return y if scale is None else graph.op("Mul", y, graph.constant(float32(scale)))
