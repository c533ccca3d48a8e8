"""The format of Hugging Face `transformers` (`KyutaiSpeechToTextForConditionalGeneration`): configuration and tensors.

Its configuration has no keys for pause heads, conditioners, sampling and the delay in frames. Our `config.json` keeps
them under one more key, `slipstream`, in the form of Kyutai's `config.json`; `transformers` ignores it.

Its tensors differ from the canonical ones in three ways. Queries and keys are stored for a rotation of halves instead
of neighbouring pairs. All embeddings are one table, the audio codebooks after the text, with a row of zeros for
padding at the end. The codec is in the same file. Pause heads and conditioners are in a separate file
(`EXTRAS_FILE`), under their canonical names.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from slipstream.checkpoints.kyutai import dump_kyutai, hidden_scale, parse_kyutai
from slipstream.checkpoints.mimi import codebook_flags, numbered, whisper_entries
from slipstream.checkpoints.presets import PRESETS
from slipstream.checkpoints.tables import Entries, Joined, Same, Shape, Table, make_rules
from slipstream.checkpoints.tensors import Array, Tensors
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import PAD_ID, CodecConfig, LMConfig, STTConfig
from slipstream.model.names import Shapes, codec_shapes, lm_shapes
from slipstream.schema import (
    Count,
    LooseSection,
    NonNegativeNumber,
    PositiveNumber,
    Section,
    check_fixed,
    only,
    parse,
)

logger = logging.getLogger(__name__)

MODEL_TYPE = "kyutai_speech_to_text"
MODEL_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.model"

# --------------------------------------------------------------------------------------------------- configuration


class _Rope(LooseSection):
    rope_type: Literal["default"] = "default"
    rope_theta: PositiveNumber | None = None


class _Attention(LooseSection):
    """The keys that both Transformers have. Version 5 writes `rope_parameters`, version 4 wrote `rope_theta`."""

    head_dim: Count | None = None
    num_key_value_heads: Count | None = None
    rope_parameters: _Rope = _Rope()
    rope_theta: PositiveNumber | None = None

    def check(self, width: int, heads: int, where: str) -> None:
        """Raise `ConfigError` unless the heads are the whole width, with a key and a value each."""
        check_fixed(self, {"num_key_value_heads": heads}, where)
        if self.head_dim is not None and self.head_dim * heads != width:
            raise ConfigError(
                f"{where}: head_dim={self.head_dim} is not supported: {heads} heads of a model {width} wide must have "
                f"head_dim={width // heads}"
            )

    def max_period(self, default: float) -> float:
        return self.rope_parameters.rope_theta or self.rope_theta or default


class _Codec(_Attention):
    """`codec_config`. Absent keys are those of the published Mimi: `transformers` does not write its defaults."""

    sample_rate: Count | None = Field(None, alias="sampling_rate")
    num_filters: Count | None = None
    kernel_size: Count | None = None
    last_kernel_size: Count | None = None
    residual_kernel_size: Count | None = None
    num_residual_layers: Count | None = None
    dilation_base: Count | None = Field(None, alias="dilation_growth_rate")
    compress: Count | None = None
    codebook_dim: Count | None = None
    codebook_size: Count | None = None
    num_codebooks: Count | None = Field(None, alias="num_quantizers")
    num_semantic: Count | None = Field(None, alias="num_semantic_quantizers")
    ratios: list[Count] | None = Field(None, alias="upsampling_ratios")
    dim: Count | None = Field(None, alias="hidden_size")
    num_heads: Count | None = Field(None, alias="num_attention_heads")
    num_layers: Count | None = Field(None, alias="num_hidden_layers")
    ffn_dim: Count | None = Field(None, alias="intermediate_size")
    context: Count | None = Field(None, alias="sliding_window")
    audio_channels: Literal[1] = 1
    use_causal_conv: Literal[True] = True
    pad_mode: Literal["constant"] = "constant"
    trim_right_ratio: Annotated[float, only(1.0)] = 1.0
    use_conv_shortcut: Literal[False] = False
    hidden_act: Literal["gelu"] = "gelu"
    norm_eps: Annotated[float, only(1e-5)] = 1e-5
    attention_bias: Literal[False] = False
    upsample_groups: Count | None = None
    vector_quantization_hidden_dimension: Count | None = None

    def config(self) -> CodecConfig:
        """The canonical configuration. Raises `ConfigError` for values that contradict each other."""
        fields = CodecConfig().model_dump(mode="json")
        fields |= self.model_dump(include=set(_CODEC_FIELDS), exclude_none=True)
        transformer = fields["transformer"]
        transformer |= self.model_dump(include=set(_TRANSFORMER_FIELDS), exclude_none=True)
        transformer["max_period"] = self.max_period(default=10_000.0)
        self.check(transformer["dim"], transformer["num_heads"], "codec_config")
        fixed = {
            "upsample_groups": transformer["dim"],
            "vector_quantization_hidden_dimension": fields["codebook_dim"],
        }
        check_fixed(self, fixed, "codec_config")
        fields["frame_rate"] = fields["sample_rate"] / (_STRIDE * math.prod(fields["ratios"]))
        return parse(CodecConfig, fields, "codec_config")


class _Extras(Section):
    """The key `slipstream`: parts of Kyutai's `config.json`."""

    conditioners: Any = None
    extra_heads_dim: Any = None
    extra_heads_num_heads: Any = None
    fuser: Any = None
    lm_gen_config: Any = None
    model_id: Any = None
    n_q: Any = None
    stt_config: dict[str, Any] | None = None
    tokenizer_name: Any = None


class _Config(_Attention):
    """`config.json`. The aliases are the keys of `transformers`, the names those of Kyutai."""

    dim: Count = Field(alias="hidden_size")
    num_layers: Count = Field(alias="num_hidden_layers")
    num_heads: Count = Field(alias="num_attention_heads")
    n_q: Count = Field(alias="num_codebooks")
    context: Count = Field(alias="sliding_window")
    vocab_size: Count
    codebook_vocab_size: Count
    ffn_dim: Count
    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Annotated[float, only(1e-8)] = 1e-8
    tie_word_embeddings: Literal[False] = False
    codec: _Codec = Field(default_factory=_Codec.model_construct, alias="codec_config")
    slipstream: _Extras | None = None


class _Delays(LooseSection):
    audio_delay_seconds: NonNegativeNumber | None = None
    audio_silence_prefix_seconds: NonNegativeNumber | None = None


_STRIDE = 2  # from SEANet's rate to the frame rate: the only one that their codec has
_KYUTAI_NAMES = ("dim", "num_layers", "num_heads", "n_q", "context")
_TRANSFORMER_FIELDS = ("dim", "num_heads", "num_layers", "ffn_dim", "context")
_CODEC_FIELDS = tuple(name for name in _Codec.model_fields if name in CodecConfig.model_fields)


def is_transformers(raw: Mapping[str, Any]) -> bool:
    """Whether the content of a `config.json` is one of `transformers`, not of Kyutai."""
    return raw.get("model_type") == MODEL_TYPE


def parse_config(raw: Mapping[str, Any], processor: Mapping[str, Any]) -> STTConfig:
    """Read a `config.json` of `transformers`.

    Args:
        raw: The content of the file. Keys that do not describe the model are ignored.
        processor: The content of the feature extractor's file, which has the delay.

    Raises:
        ConfigError: A value is wrong or missing; the message names its key.
    """
    file = parse(_Config, raw, "config.json")
    file.check(file.dim, file.num_heads, "config.json")
    extras = file.slipstream.model_dump(exclude_none=True) if file.slipstream else {}
    delays = parse(_Delays, processor, "preprocessor_config.json").model_dump(exclude_none=True)
    stt = {**extras.get("stt_config", {}), **delays}
    if "audio_delay_seconds" not in stt:
        raise ConfigError("preprocessor_config.json lacks audio_delay_seconds")
    kyutai = {
        **file.model_dump(include=set(_KYUTAI_NAMES)),
        "card": file.codebook_vocab_size - 1,
        "text_card": file.vocab_size - 1,
        "max_period": file.max_period(default=100_000.0),
        "hidden_scale": hidden_scale(file.dim, file.ffn_dim // 2),
        "moshi_name": MODEL_FILE,
        "mimi_name": MODEL_FILE,
        "tokenizer_name": TOKENIZER_FILE,
        **extras,
        "stt_config": stt,
    }
    config = parse_kyutai(kyutai, file.codec.config().model_dump(mode="json"))
    return config if extras else _with_known_context(config)


def dump_config(config: STTConfig, dtype: str) -> dict[str, dict[str, Any]]:
    """The files, by name, that `from_pretrained` of the model and of its feature extractor read.

    Args:
        config: The model.
        dtype: Type of the LM's weights.

    Raises:
        CheckpointError: `transformers` cannot represent the model.
    """
    _check(config)
    lm, kyutai, transformer = config.lm, dump_kyutai(config), config.lm.transformer
    codebooks = config.codec.num_codebooks  # `model.generate` embeds all of them, whether the LM reads them or not
    return {
        "config.json": {
            "architectures": ["KyutaiSpeechToTextForConditionalGeneration"],
            "model_type": MODEL_TYPE,
            "dtype": dtype,
            **{str(_Config.model_fields[name].alias): kyutai[name] for name in _KYUTAI_NAMES},
            "hidden_act": "silu",
            "rms_norm_eps": 1e-8,
            "tie_word_embeddings": False,
            "num_codebooks": codebooks,
            "num_key_value_heads": transformer.num_heads,
            "vocab_size": lm.text_vocab + 1,
            "codebook_vocab_size": lm.audio_vocab + 1,
            "ffn_dim": 2 * transformer.ffn_dim,
            "rope_parameters": {"rope_type": "default", "rope_theta": transformer.max_period},
            "max_position_embeddings": 2 * transformer.context,
            "bos_token_id": lm.text_initial_id,
            "pad_token_id": PAD_ID,
            "audio_bos_token_id": lm.audio_initial_id,
            "audio_pad_token_id": lm.text_vocab + 1 + codebooks * (lm.audio_vocab + 1),
            "codec_config": _dump_codec(config.codec),
            "slipstream": {key: kyutai[key] for key in _Extras.model_fields if key in kyutai},
        },
        # No `audio_window_size`, so that the audio is encoded as a whole: with windows the first one is encoded twice.
        "generation_config.json": {"bos_token_id": lm.text_initial_id, "pad_token_id": PAD_ID},
        "preprocessor_config.json": {
            "feature_extractor_type": "KyutaiSpeechToTextFeatureExtractor",
            "feature_size": 1,
            "sampling_rate": config.codec.sample_rate,
            "padding_side": "right",
            "padding_value": 0.0,
            "audio_delay_seconds": config.delay_seconds,
            "audio_silence_prefix_seconds": config.silence_prefix_seconds,
        },
    }


def _with_known_context(config: STTConfig) -> STTConfig:
    """Correct the context of a published model whose `sliding_window` contradicts Kyutai's own configuration."""
    for name, known in PRESETS.items():
        same_model = known.lm.model_copy(update={"pause_heads": config.lm.pause_heads})
        lm = same_model.model_copy(update={"transformer": config.lm.transformer})
        context = known.lm.transformer.context
        transformer = config.lm.transformer.model_copy(update={"context": context})
        if lm == config.lm and transformer == known.lm.transformer and config.lm.transformer.context != context:
            logger.warning(
                "config.json: sliding_window=%d contradicts %s, trained with a context of %d frames; using %d",
                config.lm.transformer.context,
                name,
                context,
                context,
            )
            return config.model_copy(update={"lm": config.lm.model_copy(update={"transformer": transformer})})
    return config


def _dump_codec(codec: CodecConfig) -> dict[str, Any]:
    transformer = codec.transformer
    written = _Codec.model_construct(
        **{name: getattr(codec, name) for name in _CODEC_FIELDS if name != "ratios"},
        **{name: getattr(transformer, name) for name in _TRANSFORMER_FIELDS},
        ratios=list(codec.ratios),
        num_key_value_heads=transformer.num_heads,
        upsample_groups=codec.dim,
        vector_quantization_hidden_dimension=codec.codebook_dim,
        rope_parameters=_Rope(rope_theta=transformer.max_period),
    )
    return {"model_type": "mimi", **written.model_dump(by_alias=True, exclude_none=True)}


def _check(config: STTConfig) -> None:
    codec = config.codec
    transformer = codec.transformer
    refused = {
        "a log-mel codec": codec.mel is not None,
        "a codec with a Whisper encoder": codec.whisper is not None,
        f"a codec that goes from {codec.hop_samples} samples to a frame by a stride of {codec.stride}, not {_STRIDE}": (
            codec.stride != _STRIDE
        ),
        f"a codebook of {codec.codebook_size}, not a power of two": codec.codebook_size.bit_count() != 1,
        f"codebook vectors as wide as the codec ({codec.dim})": codec.codebook_dim == codec.dim,
        "a codec Transformer other than with LayerNorm, LayerScale and plain feed-forwards": (
            transformer.norm != "layer_norm" or transformer.gated or not transformer.layer_scale
        ),
    }
    problems = [what for what, holds in refused.items() if holds]
    if problems:
        raise CheckpointError(f"transformers has no model with {'; '.join(problems)}")


# --------------------------------------------------------------------------------------------------------- tensors

EXTRAS_FILE = "extras.safetensors"
_EMBEDDINGS = "model.embed_tokens.embed_tokens.weight"
_CODEC = "codec_model."


def is_extra(name: str) -> bool:
    """Whether a tensor has no place in the model of `transformers`, and is in `EXTRAS_FILE`."""
    return name.startswith(("pause_heads.", "conditioners."))


@dataclass(frozen=True, slots=True)
class Rotated:
    """Queries, keys and values as three matrices; `{}` in the name is `q`, `k` or `v`.

    Canonical rows of a query head hold rotary pairs next to each other: (0, 1), (2, 3) ... Here row j and row j + half
    are a pair: first all first members, then all second ones.
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
    """Mimi's tensors, from the LM's file (`codec_model.`) or its own repository (without the prefix)."""
    entries: Entries = {
        **whisper_entries(config),
        "downsample.weight": Same(_CODEC + "downsample.conv.weight"),
        "upsample.weight": Same(_CODEC + "upsample.conv.weight"),
        "decoder.{n}.resample.{leaf}": Same(_CODEC + "decoder.layers.{n}.conv.{leaf}"),
    }
    for side, shape in (("encoder", config), ("decoder", config.decoder_shape)):
        ours = f"{side}_transformer.layers.{{i}}."
        layer = f"{_CODEC}{side}_transformer.layers.{{i}}."
        attention = layer + "self_attn.{}_proj.weight"
        entries |= {
            f"{side}.{{n}}.{{leaf}}": Same(f"{_CODEC}{side}.layers.{{n}}.conv.{{leaf}}"),
            f"{side}.{{n}}.block.{{b}}.{{leaf}}": Same(f"{_CODEC}{side}.layers.{{n}}.block.{{b}}.conv.{{leaf}}"),
            ours + "norm1.{leaf}": Same(layer + "input_layernorm.{leaf}"),
            ours + "attn.in_proj.weight": Rotated(attention, shape.transformer.num_heads),
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
