"""Whisper's audio encoder with limited context as a graph: one frame of every slot; see `nn.whisper`.

Shapes: B slots, S samples of a frame, T positions in a frame, L layers, D width, C columns of a ring.
"""

from __future__ import annotations

from dataclasses import replace

from slipstream.backends.onnx.graph import Graph
from slipstream.backends.onnx.quantization import Bits
from slipstream.backends.onnx.ring import RingAttention
from slipstream.backends.onnx.rows import END, Rows, causal_conv, cut, with_tail
from slipstream.backends.onnx.transformer import CONTRIB, Weights, float32, linear
from slipstream.model.config import WhisperConfig
from slipstream.model.numerics import LAYER_NORM_EPS


def encoder(
    graph: Graph,
    x: Rows,
    config: WhisperConfig,
    weights: Weights,
    bits: Bits | None,
) -> Rows:
    """Add the encoder: log-mel frames to features `[B, T, D]`, `config.delay` positions late.

    Inputs: `sines` `[B, T, D]`, added to the layers' input; `mask` `[B, L, T, C]`; `live` `[B, T, 1]`, 0 before the
    first position of a stream's output, else 1; `columns` as in `codec_model`.
    """
    for name, stride in (("conv1", 1), ("conv2", 2)):
        weight, bias = weights[f"encoder.{name}.weight"], weights[f"encoder.{name}.bias"]
        x = causal_conv(graph, x, name, weight, bias, stride=stride, bits=bits)
        x = replace(x, name=_gelu(graph, x.name))
    x = replace(x, name=graph.op("Add", x.name, graph.input("sines", "float32", ["B", "T", config.dim])))
    attend = RingAttention(graph, config, config.head_dim, masks=config.num_layers)
    for layer in range(config.num_layers):
        x = _layer(graph, x, layer, config, weights, bits, attend)
    y = _norm(graph, x.name, weights, "encoder.norm")
    return replace(x, name=graph.op("Mul", y, graph.input("live", "float32", ["B", "T", 1])))


def _layer(
    graph: Graph, x: Rows, layer: int, config: WhisperConfig, weights: Weights, bits: Bits | None, attend: RingAttention
) -> Rows:
    prefix = f"encoder.layers.{layer}."

    def project(x: str, name: str) -> str:
        y = linear(graph, x, weights[f"{prefix}{name}.weight"], bits=bits)
        bias = f"{prefix}{name}.bias"
        return graph.op("Add", y, graph.constant(float32(weights[bias]))) if name != "attn.k_proj" else y

    h = _norm(graph, x.name, weights, prefix + "norm1")
    k, v = project(h, "attn.k_proj"), project(h, "attn.v_proj")
    # Queries and residual lag behind the keys.
    late = with_tail(graph, x, f"delayed.{layer}", config.lookahead)
    x = replace(x, name=cut(graph, late.name, 0, -config.lookahead or END))
    q = project(_norm(graph, x.name, weights, prefix + "norm1"), "attn.q_proj")
    y = project(attend(graph, layer, q, k, v), "attn.out_proj")
    x = replace(x, name=graph.op("Add", x.name, y))
    h = _norm(graph, x.name, weights, prefix + "norm2")
    y = project(_gelu(graph, project(h, "ffn.linear_in")), "ffn.linear_out")
    return replace(x, name=graph.op("Add", x.name, y))


def _norm(graph: Graph, x: str, weights: Weights, name: str) -> str:
    weight, bias = (graph.constant(float32(weights[f"{name}.{leaf}"])) for leaf in ("weight", "bias"))
    return graph.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=LAYER_NORM_EPS)


def _gelu(graph: Graph, x: str) -> str:
    return graph.op("Gelu", x, domain=CONTRIB)
