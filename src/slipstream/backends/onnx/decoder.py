"""Whisper's text decoder as the LM: one step of every slot; see `nn.decoder`.

Shapes: B slots, K codebooks, D width, L layers, H heads, d head width, N frames that a step sees, C columns of a cache,
V vectors per frame.
"""

from __future__ import annotations

import numpy as np

from slipstream.backends.onnx.cache import CachedAttention
from slipstream.backends.onnx.graph import Array, Graph
from slipstream.backends.onnx.protobuf import DATA_TYPES
from slipstream.backends.onnx.quantization import Bits
from slipstream.backends.onnx.transformer import (
    CONTRIB,
    Weight,
    Weights,
    float32,
    linear,
    norm,
    pad_heads,
    padded_head_dim,
)
from slipstream.model.config import LMConfig


def decoder(
    graph: Graph, text_B2D: str, audio_BKD: str, config: LMConfig, weights: Weights, dtype: str, bits: Bits | None
) -> str:
    """Add the decoder: vectors of the tokens, of type `dtype`, to the output `[B, 1, D]`.

    Inputs: `text` `[B, 2]`, the last token of each slot that is text, and the one of this step if it is not, else one
    more than the initial token; `position` `[B]`, the row of the last text token in the table of positions; `age`
    `[B, C]`, frames since that of each column of the audio's cache. The caches of the text are those of
    `CachedAttention`, and the audio's are named `cross.k.i`.
    Output: `prefix` `[N, L, 2, H, P, d]`, the same in all steps: what the first P columns of the text's caches hold in
    a stream without a language, and in one in each language.
    Caches are float32 with quantised weights, too: in half precision, eight slots take a quarter longer.
    """
    layers = range(config.transformer.num_layers)
    position = graph.input("position", "int64", ["B"])
    table = graph.constant(np.asarray(weights["transformer.positions"]).astype(dtype))
    position_B1D = graph.reshape(graph.op("Gather", table, position), [-1, 1, config.transformer.dim])
    x_B1D = _sum(graph, graph.op("Concat", text_B2D, position_B1D, axis=1))
    parts = _Parts(graph, config, weights, bits)
    # The audio's keys and values do not depend on the layer below: one product gives those of all layers.
    keys = parts.heads(
        parts.vectors(_sum(graph, audio_BKD)), [f"{i}.cross.{name}_proj" for i in layers for name in "kv"]
    )
    ages = _ages(graph, config, [float32(weights[f"transformer.layers.{i}.age"]) for i in layers])
    attend = CachedAttention(graph, config.transformer, "float32")
    cross = CachedAttention(graph, config.transformer, "float32", "cross.", parts.num_vectors)
    for i in layers:
        h = parts.norm(x_B1D, f"{i}.norm1")
        y = attend(graph, i, *parts.heads(h, [f"{i}.attn.{name}_proj" for name in "qkv"]))
        x_B1D = graph.op("Add", x_B1D, parts.out_proj(y, f"{i}.attn.out_proj"))
        (q,) = parts.heads(parts.norm(x_B1D, f"{i}.norm2"), [f"{i}.cross.q_proj"])
        y = cross(graph, i, q, keys[2 * i], keys[2 * i + 1], ages[i])
        x_B1D = graph.op("Add", x_B1D, parts.out_proj(y, f"{i}.cross.out_proj"))
        h = parts.linear(parts.norm(x_B1D, f"{i}.norm3"), f"{i}.ffn.linear_in")
        x_B1D = graph.op("Add", x_B1D, parts.linear(graph.op("Gelu", h, domain=CONTRIB), f"{i}.ffn.linear_out"))
    _prefix(graph, config, weights)
    return x_B1D


class _Parts:
    """Linear layers with biases, and norms, by their names after `transformer.layers.`."""

    def __init__(self, graph: Graph, config: LMConfig, weights: Weights, bits: Bits | None) -> None:
        self.graph, self.config, self.weights, self.bits = graph, config.transformer, weights, bits
        self.num_vectors = config.whisper.vectors if config.whisper else 1

    def vectors(self, audio_B1D: str) -> str:
        """What the layers attend to, `[B, V, D]`."""
        if self.num_vectors == 1:
            return audio_B1D
        weight, bias = (self.weights[f"transformer.spread.{leaf}"] for leaf in ("weight", "bias"))
        y = self._linear(audio_B1D, [weight], float32(bias))
        return self.graph.reshape(y, [0, self.num_vectors, self.config.dim])

    def norm(self, x: str, name: str) -> str:
        return norm(self.graph, x, self.weights, f"transformer.layers.{name}", self.config)

    def linear(self, x: str, name: str) -> str:
        return self._linear(x, [self._weight(name)], self._bias(name))

    def out_proj(self, x: str, name: str) -> str:
        return self._linear(x, [pad_heads(self._weight(name), self.config, axis=1)], self._bias(name))

    def heads(self, x: str, names: list[str]) -> list[str]:
        """Several layers over one input, each `[..., H * d]`. Those of keys have no bias."""
        weights = [pad_heads(self._weight(name), self.config) for name in names]
        none = np.zeros(self.config.dim, np.float32)
        biases = [none if name.endswith("k_proj") else self._bias(name) for name in names]
        y = self._linear(x, weights, np.concatenate([np.asarray(pad_heads(bias, self.config)) for bias in biases]))
        return self.graph.split(y, [weights[0].shape[0]] * len(names)) if len(names) > 1 else [y]

    def _linear(self, x: str, weights: list[Weight], bias: Array) -> str:
        y = linear(self.graph, x, *weights, bits=self.bits)
        return self.graph.op("Add", y, self.graph.constant(bias))

    def _weight(self, name: str) -> Weight:
        return self.weights[f"transformer.layers.{name}.weight"]

    def _bias(self, name: str) -> Array:
        return float32(self.weights[f"transformer.layers.{name}.bias"])


def _sum(graph: Graph, vectors_BND: str) -> str:
    """The sum over N in float32, `[B, 1, D]`."""
    return graph.op(
        "ReduceSum", graph.op("Cast", vectors_BND, to=DATA_TYPES["float32"]), graph.constant(np.array([1])), keepdims=1
    )


def _ages(graph: Graph, config: LMConfig, scores_HN: list[Array]) -> list[str]:
    """What each layer adds to the scores of the audio's columns, `[B, H, 1, C]`."""
    H = config.transformer.num_heads
    table = graph.constant(np.concatenate(scores_HN).T)
    scores_BCG = graph.op("Gather", table, graph.input("age", "int64", ["B", "A"]))
    scores_BG1C = graph.op("Unsqueeze", graph.op("Transpose", scores_BCG, perm=[0, 2, 1]), graph.constant([2]))
    outputs = [f"age.{layer}" for layer in range(len(scores_HN))]
    graph.op_to("Split", [scores_BG1C, graph.constant(np.full(len(scores_HN), H))], outputs, axis=1)
    return outputs


def _prefix(graph: Graph, config: LMConfig, weights: Weights) -> None:
    shape = config.transformer
    prefixes = [float32(weights[f"transformer.layers.{i}.prefix"])[None] for i in range(shape.num_layers)]
    if config.languages:
        added = [float32(weights[f"transformer.layers.{i}.languages"]) for i in range(shape.num_layers)]
        prefixes = [np.concatenate([own, own + more]) for own, more in zip(prefixes, added, strict=True)]
    padding = padded_head_dim(shape) - shape.head_dim
    prefix = np.pad(np.stack(prefixes, axis=1), [(0, 0)] * 5 + [(0, padding)])
    graph.op("Identity", graph.constant(prefix), output="prefix")
    graph.output("prefix", "float32", list(prefix.shape))
