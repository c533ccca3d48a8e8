"""Kyutai's MLX layout: the `moshi_mlx` package's names for the LM, in floats or group-quantised to 8 or 4 bits.

The codec next to it is the PyTorch file: see `mimi.codec_table`.
"""

from __future__ import annotations

from slipstream.checkpoints.quantization import Quantized, dequantize, fits, quantize
from slipstream.checkpoints.tables import Entries, Rule, Same, Stacked, Table, make_rules
from slipstream.checkpoints.tensors import Array, Tensors, check_finite
from slipstream.model.config import LMConfig
from slipstream.model.names import Shapes, lm_shapes


def lm_table(config: LMConfig) -> Table:
    """The LM's tensors as `moshi_mlx` names them. Quantised ones are dequantised as they are read."""
    layer = "transformer.layers.{i}."
    conditioner = "condition_provider.conditioners.{name}."
    entries: Entries = {
        "text_emb.weight": Same("text_emb.weight"),
        "audio_emb.weight": Stacked("audio_embs.{k}.weight", config.num_codebooks),
        "conditioners.{name}.embed.weight": Same(conditioner + "embed.weight"),
        "conditioners.{name}.output_proj.weight": Same(conditioner + "output_proj.weight"),
        "conditioners.{name}.learnt_padding": Same(conditioner + "learnt_padding", lead=2),
        "transformer.layers.{i}.{norm}.weight": Same(layer + "{norm}.weight"),
        "transformer.layers.{i}.attn.{proj}.weight": Same(layer + "self_attn.{proj}.weight"),
        "transformer.layers.{i}.ffn.{linear}.weight": Same(layer + "gating.{linear}.weight"),
        "out_norm.weight": Same("out_norm.weight"),
        "text_linear.weight": Same("text_linear.weight"),
        "pause_heads.weight": Stacked("extra_heads.{k}.weight", config.pause_heads),
    }
    return Table(make_rules(lm_shapes(config), entries), decode=dequantized)


def packed_table(config: LMConfig, tensors: Tensors) -> Table:
    """The LM's tensors; matrices that are quantised in this file stay quantised.

    A quantised canonical `name.weight` then holds packed integers, with `name.scales` and `name.biases`; each
    differs from the canonical shape in its last axis only. One that does not fit its shape stays as it is, so that
    `Table.read` reports it.
    """
    rules: list[Rule] = []
    packed: set[str] = set()
    for rule in lm_table(config).rules:
        (ours, shape), (theirs, _) = next(iter(rule.ours.items())), next(iter(rule.theirs.items()))
        parts = [tensors[name] for part in Quantized._fields if (name := _part(theirs, part)) in tensors]
        if len(parts) < len(Quantized._fields) or not fits(Quantized(*parts), shape[-1]):
            rules.append(rule)
            continue
        packed.update(rule.theirs)
        for part, array in zip(Quantized._fields, parts, strict=True):
            columns = array.shape[-1:]
            rules.append(
                Rule(
                    {_part(ours, part): shape[:-1] + columns},
                    {_part(name, part): whole[:-1] + columns for name, whole in rule.theirs.items()},
                    rule.form,
                )
            )
    return Table(tuple(rules), packed=frozenset(packed))


def file_name(bits: int | None) -> str:
    """The name that `moshi_mlx` expects of the LM's file: it reads the number of bits from the name."""
    return f"model.q{bits}.safetensors" if bits else "model.safetensors"


def quantized(tensors: Tensors, bits: int) -> dict[str, Array]:
    """Quantise every matrix, as `mlx.nn.quantize` does with every linear layer and embedding.

    Raises `CheckpointError` that names a tensor with values that are not finite.
    """
    out: dict[str, Array] = {}
    for name, array in tensors.items():
        check_finite(name, array)
        if array.ndim != 2:
            out[name] = array
            continue
        for part, values in quantize(array, bits)._asdict().items():
            out[_part(name, part)] = values
    return out


def dequantized(tensors: Tensors, shapes: Shapes) -> dict[str, Array]:
    """Replace each `weight`, `scales` and `biases` by one matrix.

    Those that do not fit the shape in `shapes` stay as they are, so that `Table.read` reports them.
    """
    out = dict(tensors)
    for name, shape in shapes.items():
        parts = [out[_part(name, part)] for part in Quantized._fields if _part(name, part) in out]
        if len(parts) == len(Quantized._fields) and fits(matrix := Quantized(*parts), shape[-1]):
            out[name] = dequantize(matrix, shape[-1])
            del out[_part(name, "scales")], out[_part(name, "biases")]
    return out


def _part(name: str, part: str) -> str:
    """`layer.scales` for `layer.weight` and `scales`."""
    return name.removesuffix("weight") + part
