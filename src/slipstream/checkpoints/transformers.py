"""The layout of Hugging Face `transformers` (`KyutaiSpeechToTextForConditionalGeneration`): its tensors.

It differs in three ways: queries and keys are stored for a rotation of halves instead of neighbouring pairs; all
embeddings are one table, the audio codebooks after the text, with a row of zeros for padding at the end; the codec
lies in the same file. It has no place for pause heads and conditioners: they lie in a file beside, under their
canonical names (`EXTRAS_FILE`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slipstream.checkpoints.mimi import codebook_flags, numbered, whisper_entries
from slipstream.checkpoints.tables import Entries, Same, Shape, Table, make_rules
from slipstream.checkpoints.tensors import Array, Tensors
from slipstream.model.config import CodecConfig, LMConfig
from slipstream.model.names import Shapes, codec_shapes, lm_shapes

EXTRAS_FILE = "extras.safetensors"
_EMBEDDINGS = "model.embed_tokens.embed_tokens.weight"
_CODEC = "codec_model."


def is_extra(name: str) -> bool:
    """Whether a tensor has no place in the model of `transformers`, and so lies in `EXTRAS_FILE`."""
    return name.startswith(("pause_heads.", "conditioners."))


@dataclass(frozen=True, slots=True)
class Rotated:
    """Queries, keys and values as three matrices; `{}` in the name is `q`, `k` or `v`.

    Canonical rows of a query head hold the rotary pairs side by side (0, 1), (2, 3) ...; here the pair of row j is
    row j + half: all first members, then all second ones.
    """

    name: str
    num_heads: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.name.replace("{}", part) for part in "qkv")

    def shapes(self, ours: Sequence[Shape]) -> Sequence[Shape]:
        rows, columns = ours[0]
        return [(rows // 3, columns)] * 3

    def read(self, theirs: Sequence[Array], ours: Sequence[Shape]) -> Sequence[Array]:
        query, key, value = theirs
        return [np.concatenate([self._swapped(query, 2, -1), self._swapped(key, 2, -1), value])]

    def write(self, ours: Sequence[Array]) -> Sequence[Array]:
        query, key, value = np.split(ours[0], 3)
        return [self._swapped(query, -1, 2), self._swapped(key, -1, 2), value]

    def _swapped(self, matrix: Array, *axes: int) -> Array:
        rows, columns = matrix.shape
        pairs: Array = matrix.reshape(self.num_heads, *axes, columns).swapaxes(1, 2)
        return pairs.reshape(rows, columns)


@dataclass(frozen=True, slots=True)
class Joined:
    """Tables with their rows one after the other, then one row of zeros."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def shapes(self, ours: Sequence[Shape]) -> Sequence[Shape]:
        return [(sum(_rows(shape) for shape in ours) + 1, ours[0][-1])]

    def read(self, theirs: Sequence[Array], ours: Sequence[Shape]) -> Sequence[Array]:
        ends = np.cumsum([_rows(shape) for shape in ours])
        parts = np.split(theirs[0], ends)[:-1]
        return [part.reshape(shape) for part, shape in zip(parts, ours, strict=True)]

    def write(self, ours: Sequence[Array]) -> Sequence[Array]:
        width = ours[0].shape[-1]
        rows = [array.reshape(-1, width) for array in ours]
        return [np.concatenate([*rows, np.zeros((1, width), rows[0].dtype)])]


def _rows(shape: Shape) -> int:
    return int(np.prod(shape[:-1]))


def lm_table(config: LMConfig) -> Table:
    """The LM's tensors as `transformers` names them; pause heads and conditioners keep their canonical names."""
    layer = "model.layers.{i}."
    attention = layer + "self_attn.{}_proj.linear.weight"
    entries: Entries = {
        ("text_emb.weight", "audio_emb.weight"): Joined(_EMBEDDINGS),
        "transformer.layers.{i}.norm1.weight": Same(layer + "input_layernorm.weight"),
        "transformer.layers.{i}.attn.in_proj.weight": Rotated(attention, config.transformer.num_heads),
        "transformer.layers.{i}.attn.out_proj.weight": Same(attention.replace("{}", "o")),
        "transformer.layers.{i}.norm2.weight": Same(layer + "post_attention_layernorm.weight"),
        "transformer.layers.{i}.ffn.linear_in.weight": Same(layer + "mlp.fc1.weight"),
        "transformer.layers.{i}.ffn.linear_out.weight": Same(layer + "mlp.fc2.weight"),
        "out_norm.weight": Same("model.norm.weight"),
        # Its output counts the initial token, which is never written: a row of zeros.
        "text_linear.weight": Joined("lm_head.weight"),
        "pause_heads.weight": Same("pause_heads.weight"),
        "conditioners.{name}.{leaf}": Same("conditioners.{name}.{leaf}"),
        "conditioners.{name}.{module}.{leaf}": Same("conditioners.{name}.{module}.{leaf}"),
    }
    return Table(make_rules(lm_shapes(config), entries), skipped=_CODEC.replace(".", r"\."), decode=_read_codebooks)


def with_unread_codebooks(lm: Tensors, config: LMConfig, codec: CodecConfig) -> Tensors:
    """Add rows of zeros to the embeddings, for the codebooks of the codec that the LM does not read.

    `model.generate` encodes with every codebook of its codec, and embeds them all.
    """
    surplus = codec.num_codebooks - config.num_codebooks
    table = lm[_EMBEDDINGS]
    zeros = np.zeros((surplus * (config.audio_vocab + 1), table.shape[1]), table.dtype)
    return {**lm, _EMBEDDINGS: np.concatenate([table, zeros])}


def _read_codebooks(tensors: Tensors, shapes: Shapes) -> Tensors:
    """Undo `with_unread_codebooks`."""
    rows, table = shapes[_EMBEDDINGS][0], tensors.get(_EMBEDDINGS)
    if table is None or len(table) <= rows or table[rows:].any():
        return tensors
    return {**tensors, _EMBEDDINGS: table[:rows]}


def codec_table(config: CodecConfig) -> Table:
    """Mimi's tensors, from the LM's file (`codec_model.`) or a repository of its own (without the prefix)."""
    entries: Entries = {
        **whisper_entries(config),
        "downsample.weight": Same(_CODEC + "downsample.conv.weight"),
        "upsample.weight": Same(_CODEC + "upsample.conv.weight"),
        "decoder.{n}.resample.{leaf}": Same(_CODEC + "decoder.layers.{n}.conv.{leaf}"),
    }
    for side in ("encoder", "decoder"):
        ours = f"{side}_transformer.layers.{{i}}."
        layer = f"{_CODEC}{side}_transformer.layers.{{i}}."
        attention = layer + "self_attn.{}_proj.weight"
        entries |= {
            f"{side}.{{n}}.{{leaf}}": Same(f"{_CODEC}{side}.layers.{{n}}.conv.{{leaf}}"),
            f"{side}.{{n}}.block.{{b}}.{{leaf}}": Same(f"{_CODEC}{side}.layers.{{n}}.block.{{b}}.conv.{{leaf}}"),
            ours + "norm1.{leaf}": Same(layer + "input_layernorm.{leaf}"),
            ours + "attn.in_proj.weight": Rotated(attention, config.transformer.num_heads),
            ours + "attn.out_proj.weight": Same(attention.replace("{}", "o")),
            ours + "scale1": Same(layer + "self_attn_layer_scale.scale"),
            ours + "norm2.{leaf}": Same(layer + "post_attention_layernorm.{leaf}"),
            ours + "ffn.linear_in.weight": Same(layer + "mlp.fc1.weight"),
            ours + "ffn.linear_out.weight": Same(layer + "mlp.fc2.weight"),
            ours + "scale2": Same(layer + "mlp_layer_scale.scale"),
        }
    for part in ("semantic", "acoustic"):
        quantizer = f"{_CODEC}quantizer.{part}_residual_vector_quantizer."
        codebook = quantizer + "layers.{k}.codebook."
        entries |= {
            f"quantizer.{part}.codebooks.{{k}}.embedding_sum": Same(codebook + "embed_sum"),
            f"quantizer.{part}.codebooks.{{k}}.cluster_usage": Same(codebook + "cluster_usage"),
            f"quantizer.{part}.{{proj}}.weight": Same(quantizer + "{proj}.weight", trail=1),
        }
    rules = make_rules(codec_shapes(config), entries, spell=lambda name: numbered(name, config))
    return Table(
        rules,
        constants=codebook_flags(rules, "initialized"),
        aliases=((r"^(encoder|decoder|downsample|upsample|quantizer)(_transformer)?\.", r"codec_model.\1\2."),),
        skipped=r"model\.|lm_head\.",
    )
