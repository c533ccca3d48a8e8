"""The language model's step as a graph: one position of every slot.

Shapes: B slots, K codebooks, D width, H heads, d head width, C columns of a cache, V text vocabulary.

Keys and values are in a cache `[B, H, C, d]` for each layer that is bound both in and out, so that a step writes one
column and copies nothing. The step writes its own key into column `length` of each slot and attends to the columns up
to it, in any order: the rotary angle is in the key, so that the column of a key does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from slipstream.backends.onnx.cache import CachedAttention
from slipstream.backends.onnx.decoder import decoder
from slipstream.backends.onnx.graph import Array, Graph, Model
from slipstream.backends.onnx.protobuf import DATA_TYPES
from slipstream.backends.onnx.quantization import Bits
from slipstream.backends.onnx.transformer import (
    Quantize,
    Weights,
    float32,
    linear,
    norm,
    transformer,
)
from slipstream.model.config import ConditionerConfig, LMConfig
from slipstream.model.numerics import check_conditions, condition_periods, condition_row, condition_sines

BITS: dict[Quantize, Bits | None] = {None: None, "int8": 8, "int4": 4}


def lm_model(config: LMConfig, weights: Weights, condition: Mapping[str, float | str], *, quantize: Quantize) -> Model:
    """The graph of one step. `condition`: value by conditioner name, added to every input.

    Inputs: `text` `[B]` and `codes` `[B, K]` int64; `cos` and `sin` `[B, d / 2]` of each slot's position; `row`
    `[B, 1]`, the row of each slot; `length` int32 `[B]`, the number of columns that a slot sees in addition to its own,
    and `longest` int32 `[1]`, the greatest of them plus one; `k.i` and `v.i`, the caches. For a model with a condition
    `delay`, also `delay` `[B]`, its value for each slot, NaN for the usual one. Whisper's decoder: see
    `decoder.decoder`; it has no `cos`, `sin` and `row`.
    Outputs: `logits` `[B, V]`, `pause` `[B, H]`, `k.i.new` and `v.i.new`, to be bound where `k.i` and `v.i` are.

    With `quantize`, embeddings and caches have half precision and the text head has 8 bits. With 4 bits there, more
    tokens are wrong than with 4 bits in all layers, and the head is only a fiftieth of the weights.
    """
    graph = Graph("lm")
    bits = BITS[quantize]
    dtype = "float16" if quantize else "float32"
    text, audio = _vectors(graph, config, weights, dtype)
    if config.whisper:
        x = decoder(graph, text, audio, config, weights, dtype, bits)
    else:
        x = _embed(graph, text, audio, config, weights, condition)
        attend = CachedAttention(graph, config.transformer, dtype)
        x = transformer(graph, x, weights, config.transformer, prefix="transformer.", attend=attend, bits=bits)
    x = norm(graph, x, weights, "out_norm", config.transformer)
    x = graph.reshape(x, [-1, config.transformer.dim])
    logits = linear(graph, x, weights["text_linear.weight"], bits=8 if bits else None)
    graph.op("Identity", logits, output="logits")
    graph.output("logits", "float32", ["B", config.text_vocab])
    if config.pause_heads:
        _pause_heads(graph, x, config, float32(weights["pause_heads.weight"]))
    return graph.finish()


def condition_vector(config: LMConfig, weights: Weights, values: Mapping[str, float | str]) -> Array:
    """The sum of all conditions `[D]`; a conditioner without a value gives its learnt padding.

    Raises `ConfigError` for an unknown name or value.
    """
    check_conditions(config, values)
    total = np.zeros(config.transformer.dim, np.float32)
    for conditioner in config.conditioners:
        prefix = f"conditioners.{conditioner.name}."
        if conditioner.name not in values:
            total += float32(weights[prefix + "learnt_padding"])
            continue
        value = values[conditioner.name]
        if conditioner.kind == "lut":
            embedded = float32(weights[prefix + "embed.weight"])[condition_row(conditioner, value)]
        else:
            embedded = condition_sines(conditioner, value)
        total += float32(weights[prefix + "output_proj.weight"]) @ embedded
    return total


def _vectors(graph: Graph, config: LMConfig, weights: Weights, dtype: str) -> tuple[str, str]:
    """The vectors of the text tokens, `[B, 1, D]`, and of the audio tokens, `[B, K, D]`.

    Whisper's decoder reads two text tokens; its table has one more, of zeros.
    """
    K, D = config.num_codebooks, config.transformer.dim
    texts = 2 if config.whisper else 1
    text = graph.input("text", "int64", ["B", 2] if config.whisper else ["B"])
    codes = graph.input("codes", "int64", ["B", K])
    first_rows = graph.constant(np.arange(K) * (config.audio_vocab + 1))
    embedding = np.asarray(weights["text_emb.weight"])
    text_table = np.zeros((len(embedding) + texts - 1, D), dtype)
    text_table[: len(embedding)] = embedding
    audio_table = graph.constant(np.asarray(weights["audio_emb.weight"]).astype(dtype).reshape(-1, D))
    text_BND = graph.reshape(graph.op("Gather", graph.constant(text_table), text), [-1, texts, D])
    return text_BND, graph.op("Gather", audio_table, graph.op("Add", codes, first_rows))


def _embed(
    graph: Graph, text: str, audio: str, config: LMConfig, weights: Weights, condition: Mapping[str, float | str]
) -> str:
    tokens = graph.op("Concat", text, audio, axis=1)
    tokens = graph.op("Cast", tokens, to=DATA_TYPES["float32"])
    x_B1D = graph.op("ReduceSum", tokens, graph.constant(np.array([1])), keepdims=1)
    if not config.conditioners:
        return x_B1D
    usual = graph.constant(condition_vector(config, weights, condition))
    delay = next((c for c in config.conditioners if c.name == "delay" and c.kind == "continuous"), None)
    if delay is None:
        return graph.op("Add", x_B1D, usual)
    own = _delay_condition(graph, config, weights, condition, delay)
    given = graph.op("IsNaN", graph.reshape("delay", [-1, 1, 1]))
    return graph.op("Add", x_B1D, graph.op("Where", given, usual, own))


def _delay_condition(
    graph: Graph, config: LMConfig, weights: Weights, condition: Mapping[str, float | str], delay: ConditionerConfig
) -> str:
    """The sum of all conditions `[B, 1, D]`, with a delay for each slot: the input `delay` `[B]`."""
    values_B = graph.input("delay", "float32", ["B"])
    others = condition_vector(config, weights, {name: value for name, value in condition.items() if name != "delay"})
    others -= float32(weights["conditioners.delay.learnt_padding"])
    scale = graph.constant(float32(delay.scale_factor / condition_periods(delay)))
    phase = graph.op("Mul", graph.reshape(values_B, [-1, 1, 1]), scale)
    sines = graph.op("Concat", graph.op("Cos", phase), graph.op("Sin", phase), axis=-1)
    projection = graph.constant(float32(weights["conditioners.delay.output_proj.weight"]).T)
    return graph.op("Add", graph.op("MatMul", sines, projection), graph.constant(others))


def _pause_heads(graph: Graph, x_BD: str, config: LMConfig, weight_HCD: Array) -> None:
    logits = linear(graph, x_BD, weight_HCD.reshape(-1, config.transformer.dim))
    logits = graph.reshape(logits, [-1, config.pause_heads, config.pause_classes])
    probability = graph.op("Softmax", logits, axis=-1)
    graph.op("Gather", probability, graph.constant(np.array(0)), axis=-1, output="pause")
    graph.output("pause", "float32", ["B", config.pause_heads])
