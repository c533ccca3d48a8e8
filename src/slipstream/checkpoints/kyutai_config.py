"""Kyutai's `config.json` and codec configuration: read and written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slipstream.checkpoints.schema import (
    Kind,
    _either,
    _table,
    _table_with_constants,
    _validate,
    check_constants,
    check_keys,
    checked,
    read_json,
    require,
)
from slipstream.errors import ConfigError
from slipstream.model.config import (
    END_OF_TURN_ABOVE,
    PAD_ID,
    WORD_ID,
    CodecConfig,
    ConditionerConfig,
    LMConfig,
    STTConfig,
)

# --------------------------------------------------------------------------------------------- published config.json

# Keys of `config.json` that shape parts of the LM which a speech-to-text model does not have (dep_q is 0).
UNUSED_LM_KEYS = frozenset(
    {
        "depformer_causal",
        "depformer_context",
        "depformer_dim",
        "depformer_dim_feedforward",
        "depformer_gating",
        "depformer_layer_scale",
        "depformer_low_rank_embeddings",
        "depformer_max_period",
        "depformer_multi_linear",
        "depformer_norm",
        "depformer_num_heads",
        "depformer_num_layers",
        "depformer_pos_emb",
        "depformer_weights_per_step",
        "depformer_weights_per_step_schedule",
        "tts_config",
        "gradient_checkpointing",
    }
)

# What each of these must be for the arithmetic here to be the checkpoint's.
_LM_CONSTANTS: dict[str, tuple[Any, ...]] = {
    "causal": (True,),
    "cross_attention": (False,),
    "demux_second_stream": (False,),
    "demux_second_text_stream": (False,),
    "existing_text_end_padding_id": (WORD_ID,),
    "existing_text_padding_id": (PAD_ID,),
    "bias_proj": (False,),
    "dep_q": (0,),
    "gating": ("silu",),
    "kv_repeat": (1,),
    "layer_scale": (None,),
    "lora": (False, True),
    "model_type": ("stt",),
    "norm": ("rms_norm_f32",),
    "norm_emb": (False,),
    "positional_embedding": ("rope",),
    "quantize": (False,),
    "text_card_out": (None,),
}

_LM_KEYS: dict[str, Kind] = {
    "card": "count",
    "conditioners": "table",
    "context": "count",
    "delays": "list",
    "dim": "count",
    "extra_heads_dim": "count",
    "extra_heads_num_heads": "natural",
    "fuser": "table",
    "hidden_scale": "positive",
    "lm_gen_config": "table",
    "lora_name": "text",
    "lora_rank": "count",
    "lora_scaling": "positive",
    "max_period": "positive",
    "mimi_config_name": "text",
    "mimi_name": "text",
    "model_id": "table",
    "moshi_name": "text",
    "n_q": "count",
    "num_heads": "count",
    "num_layers": "count",
    "stt_config": "table",
    "text_card": "count",
    "tokenizer_name": "text",
}
_STT_KEYS: dict[str, Kind] = {
    "audio_delay_seconds": "not negative",
    "audio_silence_prefix_seconds": "not negative",
    "delay_frames": "natural",
    "condition_values": "table",
    "end_of_turn_above": "not negative",
}
_SAMPLING_KEYS: dict[str, Kind] = {
    "temp": "not negative",
    "temp_text": "not negative",
    "top_k": "natural",
    "top_k_text": "natural",
    "cfg_coef": "not negative",
}

# The published server's count of frames for each published delay; other delays are rounded down.
_PUBLISHED_DELAY_FRAMES = {0.5: 6, 2.5: 32}


def delay_in_frames(seconds: float, frame_rate: float = 12.5) -> int:
    """Frames of text delay for a delay in seconds, as the published server counts it."""
    # Rounded before it is floored: 2.32 * 12.5 is a hair below 29.
    return _PUBLISHED_DELAY_FRAMES.get(seconds, math.floor(round(seconds * frame_rate, 6)))


def parse_kyutai(raw: Mapping[str, Any], codec: Mapping[str, Any] | None = None) -> STTConfig:
    """Turn the content of a published `config.json` into an `STTConfig`.

    `codec` is the content of the codec's own file, for checkpoints whose codec is not the published Mimi.
    Raises `ConfigError` that names the key.
    """
    lm = parse_lm(raw)
    raw = checked(raw, _LM_KEYS, "config.json")
    stt = _table(raw.get("stt_config"), _STT_KEYS, "stt_config")
    if "audio_delay_seconds" not in stt:
        raise ConfigError("stt_config lacks audio_delay_seconds: is this a speech-to-text checkpoint?")
    sampling = _table(raw.get("lm_gen_config"), _SAMPLING_KEYS, "lm_gen_config")
    names = {
        "lm": raw.get("moshi_name"),
        "codec": raw.get("mimi_name"),
        "codec_config": raw.get("mimi_config_name"),
        "tokenizer": raw.get("tokenizer_name"),
        "lora": raw.get("lora_name"),
    }
    delay = stt["audio_delay_seconds"]
    codec_config = parse_codec(codec) if codec is not None else CodecConfig()
    return _validate(
        STTConfig,
        {
            "codec": codec_config.model_dump(),
            "lm": lm.model_dump(),
            "delay_seconds": delay,
            "delay_frames": stt.get("delay_frames", delay_in_frames(delay, codec_config.frame_rate)),
            "silence_prefix_seconds": stt.get("audio_silence_prefix_seconds", 0.0),
            "sampling": {
                "temperature": sampling.get("temp_text", 0.0),
                "top_k": sampling.get("top_k_text", 0),
            },
            "files": {key: name for key, name in names.items() if name is not None},
            "model_id": raw.get("model_id", {}),
            "condition_values": stt.get("condition_values", {}),
            "end_of_turn_above": stt.get("end_of_turn_above", END_OF_TURN_ABOVE),
        },
    )


def parse_lm(raw: Mapping[str, Any]) -> LMConfig:
    """The LM that a published `config.json` describes; its keys for other parts need not be there.

    Raises `ConfigError` that names the key.
    """
    check_keys(raw, _LM_KEYS.keys() | _LM_CONSTANTS.keys() | UNUSED_LM_KEYS, "config.json")
    for key, allowed in _LM_CONSTANTS.items():
        if key in raw and raw[key] not in allowed:
            raise ConfigError(
                f"{key}={raw[key]!r} cannot be run here: a speech-to-text model has {key}={_either(allowed)}"
            )
    raw = checked(raw, _LM_KEYS, "config.json")
    require(raw, ("card", "context", "dim", "n_q", "num_heads", "num_layers", "text_card"), "config.json")
    if any(raw.get("delays", ())):
        raise ConfigError(f"delays={raw['delays']}: all codebooks of a speech-to-text model have delay 0")
    if "delays" in raw and len(raw["delays"]) != raw["n_q"] + 1:
        raise ConfigError(f"delays has {len(raw['delays'])} entries, expected n_q + 1 = {raw['n_q'] + 1}")
    dim = raw["dim"]
    feed_forward = int(raw.get("hidden_scale", 4) * dim)
    return _validate(
        LMConfig,
        {
            "transformer": {
                "dim": dim,
                "num_heads": raw["num_heads"],
                "num_layers": raw["num_layers"],
                # A gated layer keeps the parameter count of a plain one of that width; see `ActivationGating` upstream.
                "ffn_dim": 21 * dim // 8 if feed_forward == 4 * dim else 2 * feed_forward // 3,
                "context": raw["context"],
                "max_period": raw.get("max_period", 10_000),
                "norm": "rms_norm",
                "gated": True,
            },
            "text_vocab": raw["text_card"],
            "audio_vocab": raw["card"],
            "num_codebooks": raw["n_q"],
            "pause_heads": raw.get("extra_heads_num_heads", 0),
            "pause_classes": raw.get("extra_heads_dim", 6),
            "conditioners": _conditioners(raw.get("conditioners", {}), raw.get("fuser", {})),
        },
    )


def dump_kyutai(config: STTConfig) -> dict[str, Any]:
    """The inverse of `parse_kyutai`: the content of a `config.json` that Kyutai's loaders read too."""
    transformer = config.lm.transformer
    if transformer.norm != "rms_norm" or not transformer.gated or transformer.layer_scale:
        raise ConfigError("config.json can only describe an LM with RMSNorm, gated feed-forwards and no LayerScale")
    raw: dict[str, Any] = {
        "card": config.lm.audio_vocab,
        "n_q": config.lm.num_codebooks,
        "dep_q": 0,
        "delays": [0] * (config.lm.num_codebooks + 1),
        "dim": transformer.dim,
        "text_card": config.lm.text_vocab,
        "existing_text_padding_id": PAD_ID,
        "num_heads": transformer.num_heads,
        "num_layers": transformer.num_layers,
        "hidden_scale": hidden_scale(transformer.dim, transformer.ffn_dim),
        "causal": True,
        "layer_scale": None,
        "context": transformer.context,
        "max_period": transformer.max_period,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "depformer_dim": 1024,
        "depformer_num_heads": 16,
        "depformer_num_layers": 6,
        "depformer_dim_feedforward": None,
        "depformer_multi_linear": True,
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
        "conditioners": {c.name: _dump_conditioner(c) for c in config.lm.conditioners},
        "cross_attention": False,
        "extra_heads_num_heads": config.lm.pause_heads,
        "extra_heads_dim": config.lm.pause_classes,
        "model_id": config.model_id,
        "lm_gen_config": {
            "temp": config.sampling.temperature,
            "temp_text": config.sampling.temperature,
            "top_k": config.sampling.top_k,
            "top_k_text": config.sampling.top_k,
        },
        "stt_config": {
            "audio_delay_seconds": config.delay_seconds,
            "audio_silence_prefix_seconds": config.silence_prefix_seconds,
            "delay_frames": config.delay_frames,
        },
        "model_type": "stt",
        "moshi_name": config.files.lm,
        "mimi_name": config.files.codec,
        "tokenizer_name": config.files.tokenizer,
    }
    if config.lm.conditioners:
        raw["fuser"] = {"sum": [c.name for c in config.lm.conditioners], "cross": [], "prepend": []}
    if config.condition_values:
        raw["stt_config"]["condition_values"] = dict(config.condition_values)
    if config.end_of_turn_above != END_OF_TURN_ABOVE:
        raw["stt_config"]["end_of_turn_above"] = config.end_of_turn_above
    if config.files.codec_config:
        raw["mimi_config_name"] = config.files.codec_config
    if config.files.lora:
        raw["lora_name"] = config.files.lora
    return raw


def hidden_scale(dim: int, ffn_dim: int) -> float:
    """The scale from which `parse_kyutai` gets this feed-forward width again. Raises `ConfigError` if none does."""
    if ffn_dim == 21 * dim // 8:
        return 4
    for feed_forward in ((3 * ffn_dim + 1) // 2, 3 * ffn_dim // 2 + 1):
        if 2 * feed_forward // 3 == ffn_dim and feed_forward != 4 * dim:
            scale = feed_forward / dim
            return scale if int(scale * dim) == feed_forward else math.nextafter(scale, math.inf)
    raise ConfigError(f"no hidden_scale in config.json says a feed-forward width of {ffn_dim} for dim={dim}")


def _conditioners(conditioners: Mapping[str, Any], fuser: Mapping[str, Any]) -> list[dict[str, Any]]:
    fuser = _table(
        fuser,
        {
            "sum": "list",
            "cross": "list",
            "prepend": "list",
            "cross_attention_pos_emb": "flag",
            "cross_attention_pos_emb_scale": "positive",
        },
        "fuser",
    )
    for method in ("cross", "prepend"):
        if fuser.get(method):
            raise ConfigError(f"fuser.{method}={fuser[method]}: only summed conditions are supported (fuser.sum)")
    summed = fuser.get("sum", list(conditioners))
    if sorted(map(str, summed)) != sorted(conditioners):
        raise ConfigError(f"fuser.sum={summed} must name each of the conditioners {list(conditioners)}, and no other")
    return [_conditioner(name, spec) for name, spec in conditioners.items()]


_CONDITIONER_KINDS = {
    "ContinuousAttribute": "continuous",
    "Lut": "lut",
    "continuous": "continuous",
    "lut": "lut",
    "tensor": "tensor",
}
_CONDITIONER_KEYS: dict[str, Kind] = {
    "dim": "count",
    "scale_factor": "number",
    "max_period": "positive",
    "n_bins": "count",
    "tokenizer": "text",
    "possible_values": "list",
    "init_scale": "number",
}


def _conditioner(name: str, spec: Any) -> dict[str, Any]:
    where = f"conditioners.{name}"
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{where} must be a table, not {spec!r}")
    theirs = spec.get("type")
    if theirs not in _CONDITIONER_KINDS:
        raise ConfigError(f"{where}.type={theirs!r}: expected one of {', '.join(sorted(_CONDITIONER_KINDS))}")
    if theirs in spec:  # config.json keeps the fields in a table of their own, the Rust server beside the type
        check_keys(spec, {"type", theirs}, where)
        body = _table(spec[theirs], _CONDITIONER_KEYS, f"{where}.{theirs}")
    else:
        body = _table({k: v for k, v in spec.items() if k != "type"}, _CONDITIONER_KEYS, where)
    kind = _CONDITIONER_KINDS[theirs]
    require(body, ("dim", "n_bins") if kind == "lut" else ("dim",), where)
    if body.get("tokenizer", "noop") != "noop":
        raise ConfigError(f"{where}.tokenizer={body['tokenizer']!r} cannot be run here: only 'noop' is supported")
    out: dict[str, Any] = {"name": name, "kind": kind, "dim": body["dim"]}
    out |= {key: float(body[key]) for key in ("scale_factor", "max_period") if key in body}
    if kind == "lut":
        out |= {"num_bins": body["n_bins"], "possible_values": body.get("possible_values", [])}
    return out


def _dump_conditioner(conditioner: ConditionerConfig) -> dict[str, Any]:
    if conditioner.kind == "continuous":
        body: dict[str, Any] = {
            "dim": conditioner.dim,
            "scale_factor": conditioner.scale_factor,
            "max_period": conditioner.max_period,
        }
    elif conditioner.kind == "lut":
        body = {
            "dim": conditioner.dim,
            "n_bins": conditioner.num_bins,
            "tokenizer": "noop",
            "possible_values": list(conditioner.possible_values),
        }
    else:
        body = {"dim": conditioner.dim}
    return {"type": conditioner.kind, conditioner.kind: body}


# ------------------------------------------------------------------------------------------------ the codec's own file


def parse_codec(raw: Mapping[str, Any]) -> CodecConfig:
    """Read a codec's own file: our fields (`CodecConfig`), or the `seanet`/`quantizer`/`transformer` of Kyutai's."""
    if "seanet" in raw:
        return _parse_kyutai_codec(raw)
    check_keys(raw, CodecConfig.model_fields.keys(), "the codec's config")
    return _validate(CodecConfig, dict(raw))


def dump_codec(config: CodecConfig) -> dict[str, Any]:
    """The inverse of `parse_codec`: in Kyutai's form where it can say it, else (log-mel, say) in ours."""
    if not config.has_decoder or config.transformer.norm != "layer_norm" or config.transformer.gated:
        dumped: dict[str, Any] = json.loads(config.model_dump_json(exclude=_SEANET_ONLY if config.whisper else set()))
        return dumped
    transformer = config.transformer
    return {
        "sample_rate": config.sample_rate,
        "channels": 1,
        "frame_rate": config.frame_rate,
        "seanet": {
            **_SEANET_CONSTANTS,
            "dimension": config.dim,
            "n_filters": config.num_filters,
            "n_residual_layers": config.num_residual_layers,
            "compress": config.compress,
            "dilation_base": config.dilation_base,
            "kernel_size": config.kernel_size,
            "residual_kernel_size": config.residual_kernel_size,
            "last_kernel_size": config.last_kernel_size,
            "ratios": list(config.ratios),
        },
        "quantizer": {
            "dimension": config.codebook_dim,
            "n_q": config.num_codebooks,
            "n_q_semantic": config.num_semantic,
            "bins": config.codebook_size,
            "input_dimension": config.dim,
            "output_dimension": config.dim,
        },
        "transformer": {
            **_CODEC_TRANSFORMER_CONSTANTS,
            "d_model": transformer.dim,
            "num_heads": transformer.num_heads,
            "num_layers": transformer.num_layers,
            "context": transformer.context,
            "max_period": transformer.max_period,
            "dim_feedforward": transformer.ffn_dim,
            "layer_scale": 0.01 if transformer.layer_scale else None,
            "input_dimension": transformer.dim,
            "output_dimensions": [transformer.dim],
        },
    }


# Fields of `CodecConfig` that a Whisper encoder does not read.
_SEANET_ONLY = {
    "num_filters",
    "ratios",
    "kernel_size",
    "last_kernel_size",
    "residual_kernel_size",
    "num_residual_layers",
    "dilation_base",
    "compress",
    "transformer",
    "mel",
}
_SEANET_CONSTANTS: dict[str, Any] = {
    "channels": 1,
    "causal": True,
    "activation": "ELU",
    "disable_norm_outer_blocks": 0,
    "norm": "none",
    "pad_mode": "constant",
    "true_skip": True,
}
_CODEC_TRANSFORMER_CONSTANTS: dict[str, Any] = {
    "causal": True,
    "conv_layout": True,
    "gating": "none",
    "norm": "layer_norm",
    "positional_embedding": "rope",
}


_CODEC_KEYS: dict[str, Kind] = {
    "sample_rate": "count",
    "channels": "count",
    "frame_rate": "positive",
    "seanet": "table",
    "quantizer": "table",
    "transformer": "table",
}
_QUANTIZER_KEYS: dict[str, Kind] = {
    "dimension": "count",
    "n_q": "count",
    "n_q_semantic": "count",
    "bins": "count",
    "input_dimension": "count",
    "output_dimension": "count",
}
# Our name for each key that says how wide or long a part is.
_SEANET_FIELDS = {
    "n_filters": "num_filters",
    "kernel_size": "kernel_size",
    "last_kernel_size": "last_kernel_size",
    "residual_kernel_size": "residual_kernel_size",
    "n_residual_layers": "num_residual_layers",
    "dilation_base": "dilation_base",
    "compress": "compress",
}
_CODEC_TRANSFORMER_FIELDS = {
    "d_model": "dim",
    "num_heads": "num_heads",
    "num_layers": "num_layers",
    "dim_feedforward": "ffn_dim",
    "context": "context",
}


def _parse_kyutai_codec(raw: Mapping[str, Any]) -> CodecConfig:
    raw = _table(raw, _CODEC_KEYS, "the codec's config")
    require(raw, ("seanet", "quantizer", "transformer"), "the codec's config")
    check_constants(raw, {"channels": 1}, "the codec's config")
    seanet = _table_with_constants(
        raw["seanet"],
        {**dict.fromkeys(_SEANET_FIELDS, "count"), "dimension": "count", "ratios": "list"},
        _SEANET_CONSTANTS,
        "seanet",
    )
    transformer = _table_with_constants(
        raw["transformer"],
        {
            **dict.fromkeys(_CODEC_TRANSFORMER_FIELDS, "count"),
            "max_period": "positive",
            "layer_scale": "positive",
            "input_dimension": "count",
            "output_dimensions": "list",
        },
        _CODEC_TRANSFORMER_CONSTANTS,
        "transformer",
    )
    quantizer = _table(raw["quantizer"], _QUANTIZER_KEYS, "quantizer")
    require(transformer, (*_CODEC_TRANSFORMER_FIELDS, "max_period"), "transformer")
    require(quantizer, ("dimension", "n_q", "bins"), "quantizer")
    width = transformer["d_model"]
    for table, key, where in (
        (seanet, "dimension", "seanet"),
        (quantizer, "input_dimension", "quantizer"),
        (quantizer, "output_dimension", "quantizer"),
        (transformer, "input_dimension", "transformer"),
    ):
        if table.get(key, width) != width:
            raise ConfigError(f"{where}.{key}={table[key]} must be the Transformers' width, d_model={width}")
    fields: dict[str, Any] = {ours: seanet[theirs] for theirs, ours in _SEANET_FIELDS.items() if theirs in seanet}
    if "ratios" in seanet:
        fields["ratios"] = seanet["ratios"]
    fields["transformer"] = {
        **{ours: transformer[theirs] for theirs, ours in _CODEC_TRANSFORMER_FIELDS.items()},
        "max_period": transformer["max_period"],
        "norm": "layer_norm",
        "gated": False,
        "layer_scale": "layer_scale" in transformer,
    }
    fields |= {
        "sample_rate": raw.get("sample_rate", 24_000),
        "frame_rate": raw.get("frame_rate", 12.5),
        "codebook_dim": quantizer["dimension"],
        "codebook_size": quantizer["bins"],
        "num_codebooks": quantizer["n_q"],
        "num_semantic": quantizer.get("n_q_semantic", 1),
    }
    return _validate(CodecConfig, fields)


def read_config(path: str | Path) -> STTConfig:
    """Read a published `config.json`, with the codec's own file beside it where it names one.

    Raises `ConfigError` for a file that is missing, not JSON, or has a key or value that cannot be used.
    """
    path = Path(path)
    raw = read_json(path)
    codec_file = raw.get("mimi_config_name")
    codec = read_json(path.parent / codec_file) if codec_file else None
    try:
        return parse_kyutai(raw, codec)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
