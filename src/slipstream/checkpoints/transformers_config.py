"""The configuration files of Hugging Face `transformers`: read, and written.

Theirs have no place for pause heads, conditioners, sampling and the delay in frames: our `config.json` keeps those
under one key more, `slipstream`, in the words of Kyutai's `config.json`; `transformers` passes over it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from slipstream.checkpoints.kyutai_config import dump_kyutai, hidden_scale, parse_codec, parse_kyutai
from slipstream.checkpoints.presets import PRESETS
from slipstream.checkpoints.schema import Kind, check_constants, check_keys, checked, require
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import PAD_ID, CodecConfig, STTConfig

logger = logging.getLogger(__name__)

MODEL_TYPE = "kyutai_speech_to_text"
MODEL_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.model"


def is_transformers(raw: Mapping[str, Any]) -> bool:
    """Whether the content of a `config.json` is one of `transformers`, not of Kyutai."""
    return raw.get("model_type") == MODEL_TYPE


def parse_config(raw: Mapping[str, Any], processor: Mapping[str, Any]) -> STTConfig:
    """The configuration in a `config.json` and the feature extractor's file, which holds the delay.

    Keys that say nothing about the model are passed over. Raises `ConfigError` that names the key.
    """
    raw = checked(raw, _LM_KINDS, "config.json")
    require(raw, (*_LM_FIELDS, "vocab_size", "codebook_vocab_size", "ffn_dim"), "config.json")
    heads = raw["num_attention_heads"]
    check_constants(raw, {**_LM_CONSTANTS, "num_key_value_heads": heads}, "config.json")
    _check_head_dim(raw, "config.json")
    extras = raw.get("slipstream", {})
    check_keys(extras, _EXTRA_KEYS, "config.json: slipstream")
    extras = checked(extras, {"stt_config": "table"}, "config.json: slipstream")
    delays = checked(processor, dict.fromkeys(_DELAYS, "not negative"), "preprocessor_config.json")
    stt = {**extras.get("stt_config", {}), **{key: delays[key] for key in _DELAYS if key in delays}}
    if "audio_delay_seconds" not in stt:
        raise ConfigError("preprocessor_config.json lacks audio_delay_seconds")
    codec = _parse_codec(checked(raw.get("codec_config", {}), _CODEC_KINDS, "codec_config"))
    kyutai = {
        **{ours: raw[theirs] for theirs, ours in _LM_FIELDS.items()},
        "card": raw["codebook_vocab_size"] - 1,
        "text_card": raw["vocab_size"] - 1,
        "max_period": _rope_theta(raw, default=100_000.0),
        "hidden_scale": hidden_scale(raw["hidden_size"], raw["ffn_dim"] // 2),
        "moshi_name": MODEL_FILE,
        "mimi_name": MODEL_FILE,
        "tokenizer_name": TOKENIZER_FILE,
        **extras,
        "stt_config": stt,
    }
    config = parse_kyutai(kyutai, codec.model_dump(mode="json"))
    return config if extras else _with_known_context(config)


def dump_config(config: STTConfig, dtype: str) -> dict[str, dict[str, Any]]:
    """The files, by name, that `from_pretrained` of the model and of its feature extractor read.

    `dtype`: that of the LM's weights. Raises `CheckpointError` when `transformers` has no such model.
    """
    _check(config)
    lm, kyutai = config.lm, dump_kyutai(config)
    codebooks = config.codec.num_codebooks  # `model.generate` embeds all of them, read by the LM or not
    return {
        "config.json": {
            "architectures": ["KyutaiSpeechToTextForConditionalGeneration"],
            "model_type": MODEL_TYPE,
            "dtype": dtype,
            **{theirs: kyutai[ours] for theirs, ours in _LM_FIELDS.items()},
            **_LM_CONSTANTS,
            "num_codebooks": codebooks,
            "num_key_value_heads": lm.transformer.num_heads,
            "vocab_size": lm.text_vocab + 1,
            "codebook_vocab_size": lm.audio_vocab + 1,
            "ffn_dim": 2 * lm.transformer.ffn_dim,
            "rope_parameters": {"rope_type": "default", "rope_theta": lm.transformer.max_period},
            "max_position_embeddings": 2 * lm.transformer.context,
            "bos_token_id": lm.text_initial_id,
            "pad_token_id": PAD_ID,
            "audio_bos_token_id": lm.audio_initial_id,
            "audio_pad_token_id": lm.text_vocab + 1 + codebooks * (lm.audio_vocab + 1),
            "codec_config": _dump_codec(config.codec),
            "slipstream": {key: kyutai[key] for key in _EXTRA_KEYS if key in kyutai},
        },
        # Without `audio_window_size` it encodes the audio at once: in windows it hears the first one twice.
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


# Keys that `transformers` has in other words, and Kyutai's words for them.
_LM_FIELDS = {
    "hidden_size": "dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_codebooks": "n_q",
    "sliding_window": "context",
}
_LM_KINDS: dict[str, Kind] = {
    **dict.fromkeys(_LM_FIELDS, "count"),
    "vocab_size": "count",
    "codebook_vocab_size": "count",
    "ffn_dim": "count",
    "rope_parameters": "table",
    "rope_theta": "positive",
    "codec_config": "table",
    "slipstream": "table",
}
_LM_CONSTANTS: dict[str, Any] = {"hidden_act": "silu", "rms_norm_eps": 1e-8, "tie_word_embeddings": False}
_DELAYS = ("audio_delay_seconds", "audio_silence_prefix_seconds")
# The parts of Kyutai's config.json that have no place in theirs.
_EXTRA_KEYS = (
    "conditioners",
    "extra_heads_dim",
    "extra_heads_num_heads",
    "fuser",
    "lm_gen_config",
    "model_id",
    "n_q",
    "stt_config",
    "tokenizer_name",
)

# Their words for the fields of our codec.
_CODEC_FIELDS = {
    "sampling_rate": "sample_rate",
    "num_filters": "num_filters",
    "kernel_size": "kernel_size",
    "last_kernel_size": "last_kernel_size",
    "residual_kernel_size": "residual_kernel_size",
    "num_residual_layers": "num_residual_layers",
    "dilation_growth_rate": "dilation_base",
    "compress": "compress",
    "codebook_dim": "codebook_dim",
    "codebook_size": "codebook_size",
    "num_quantizers": "num_codebooks",
    "num_semantic_quantizers": "num_semantic",
}
_CODEC_TRANSFORMER_FIELDS = {
    "hidden_size": "dim",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "intermediate_size": "ffn_dim",
    "sliding_window": "context",
}
_CODEC_KINDS: dict[str, Kind] = {
    **dict.fromkeys(_CODEC_FIELDS, "count"),
    **dict.fromkeys(_CODEC_TRANSFORMER_FIELDS, "count"),
    "upsampling_ratios": "list",
    "rope_parameters": "table",
    "rope_theta": "positive",
}
_CODEC_CONSTANTS: dict[str, Any] = {
    "audio_channels": 1,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "trim_right_ratio": 1.0,
    "use_conv_shortcut": False,
    "hidden_act": "gelu",
    "norm_eps": 1e-5,
    "attention_bias": False,
}
_STRIDE = 2  # from SEANet's rate to the frame rate: the only one that their codec has


def _parse_codec(raw: Mapping[str, Any]) -> CodecConfig:
    """Keys that are absent are as in the published Mimi: `transformers` does not write out what is usual."""
    usual = CodecConfig().model_dump(mode="json")
    _check_head_dim({"hidden_size": 512, "num_attention_heads": 8, **raw}, "codec_config")
    fields = usual | {ours: raw[theirs] for theirs, ours in _CODEC_FIELDS.items() if theirs in raw}
    fields["ratios"] = raw.get("upsampling_ratios", fields["ratios"])
    fields["transformer"] |= {ours: raw[theirs] for theirs, ours in _CODEC_TRANSFORMER_FIELDS.items() if theirs in raw}
    fields["transformer"]["max_period"] = _rope_theta(raw, default=10_000.0)
    if not all(type(ratio) is int and ratio > 0 for ratio in fields["ratios"]):
        raise ConfigError(f"codec_config: upsampling_ratios={fields['ratios']} must be whole numbers above 0")
    fields["frame_rate"] = fields["sample_rate"] / (_STRIDE * math.prod(fields["ratios"]))
    check_constants(
        raw,
        {
            **_CODEC_CONSTANTS,
            "num_key_value_heads": fields["transformer"]["num_heads"],
            "upsample_groups": fields["transformer"]["dim"],
            "vector_quantization_hidden_dimension": fields["codebook_dim"],
        },
        "codec_config",
    )
    return parse_codec(fields)


def _check_head_dim(raw: Mapping[str, Any], where: str) -> None:
    head_dim, width, heads = raw.get("head_dim"), raw["hidden_size"], raw["num_attention_heads"]
    if head_dim is not None and head_dim * heads != width:
        raise ConfigError(
            f"{where}: head_dim={head_dim} is not supported: {heads} heads of a model {width} wide must have "
            f"head_dim={width // heads}"
        )


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
    return {
        "model_type": "mimi",
        **{theirs: getattr(codec, ours) for theirs, ours in _CODEC_FIELDS.items()},
        **{theirs: getattr(transformer, ours) for theirs, ours in _CODEC_TRANSFORMER_FIELDS.items()},
        **_CODEC_CONSTANTS,
        "upsampling_ratios": list(codec.ratios),
        "vector_quantization_hidden_dimension": codec.codebook_dim,
        "num_key_value_heads": transformer.num_heads,
        "upsample_groups": codec.dim,
        "rope_parameters": {"rope_type": "default", "rope_theta": transformer.max_period},
    }


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


def _rope_theta(raw: Mapping[str, Any], default: float) -> float:
    """Where version 5 writes it, or where version 4 did."""
    parameters = raw.get("rope_parameters", {})
    if parameters.get("rope_type", "default") != "default":
        raise ConfigError(f"rope_parameters.rope_type={parameters['rope_type']!r}: only 'default' is supported")
    checked(parameters, {"rope_theta": "positive"}, "rope_parameters")
    return float(parameters.get("rope_theta", raw.get("rope_theta", default)))
