"""Frozen, strict configurations of the codec, the LM and the whole system.

They read a published `config.json` and the model section of the Rust server's TOML. A key that is not known is an
error that names it and the nearest known one; a key of a part that is never run here (the depformer, when it has no
codebooks to write) is known and listed as such.
"""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from slipstream.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAD_ID = 3
"""Text token that says: nothing here."""
WORD_ID = 0
"""Text token that says: a word comes next. It stands one frame before the word's first token."""
WHISPER_RATE = 50
"""Positions a second of Whisper's encoder, at half the rate of its log-mel frames."""
END_OF_TURN_ABOVE = 0.6
"""What the published models' pause head must say for a turn to end."""

Positive = Annotated[int, Field(gt=0)]
_Model = TypeVar("_Model", bound="_Config")


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class TransformerConfig(_Config):
    """A causal Transformer whose queries see the last `context` positions, themselves included.

    `ffn_dim` is the width between the two feed-forward layers; a gated one reads `2 * ffn_dim` and multiplies the
    halves. `layer_scale`: a learnt scale on each residual branch.
    """

    dim: Positive
    num_heads: Positive
    num_layers: Positive
    ffn_dim: Positive
    context: Positive
    max_period: Annotated[float, Field(gt=1)]
    norm: Literal["rms_norm", "layer_norm"]
    gated: bool
    layer_scale: bool = False

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TransformerConfig:
        if self.dim % self.num_heads or self.head_dim % 2:
            raise ValueError(
                f"dim={self.dim} must be num_heads={self.num_heads} times an even head width (rotary pairs)"
            )
        return self


class MelConfig(_Config):
    """A fixed log-mel front end: `n_mels` bands every `hop` samples, from a causal window of `window` samples."""

    n_mels: Positive = 80
    window: Positive = 600
    hop: Positive = 240
    f_min: Annotated[float, Field(ge=0)] = 20.0
    f_max: Annotated[float, Field(gt=0)] = 8000.0


class WhisperConfig(_Config):
    """Whisper's audio encoder with limited context: log-mel bands at 100 Hz, two convolutions, layers at 50 Hz.

    The defaults are the size of Whisper base. A position sees `context` positions of the layer below, itself included,
    and `lookahead` positions after it. `mel_floor` replaces Whisper's floor, which depends on the maximum of the clip:
    bands below it (log10 of the power) are raised to it.
    """

    n_mels: Positive = 80
    dim: Annotated[int, Field(ge=4, multiple_of=2)] = 512
    num_heads: Positive = 8
    num_layers: Positive = 6
    ffn_dim: Positive = 2048
    context: Positive = 250
    lookahead: Annotated[int, Field(ge=0)] = 4
    mel_floor: float = -7.0

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def delay(self) -> int:
        """Positions by which a stream's output lags behind its input (24: 0.48 s)."""
        return self.num_layers * self.lookahead

    @model_validator(mode="after")
    def _heads_divide_width(self) -> WhisperConfig:
        if self.dim % self.num_heads:
            raise ValueError(f"dim={self.dim} must be a multiple of num_heads={self.num_heads}")
        return self


class CodecConfig(_Config):
    """Mimi: SEANet, a Transformer, a strided convolution to the frame rate, a split residual quantiser.

    The defaults are the published Mimi (24 kHz, 12.5 frames/s). `ratios` are in the decoder's order; the encoder
    strides by them in reverse. With `mel` set, SEANet's encoder reads log-mel frames instead of samples and there is
    no decoder. With `whisper` set, Whisper's encoder replaces SEANet and the Transformer, and there is no decoder.
    """

    sample_rate: Positive = 24_000
    frame_rate: Annotated[float, Field(gt=0)] = 12.5
    num_filters: Positive = 64
    ratios: tuple[Positive, ...] = (8, 6, 5, 4)
    kernel_size: Positive = 7
    last_kernel_size: Positive = 3
    residual_kernel_size: Positive = 3
    num_residual_layers: Positive = 1
    dilation_base: Positive = 2
    compress: Positive = 2
    transformer: TransformerConfig = TransformerConfig(
        dim=512,
        num_heads=8,
        num_layers=8,
        ffn_dim=2048,
        context=250,
        max_period=10_000.0,
        norm="layer_norm",
        gated=False,
        layer_scale=True,
    )
    codebook_dim: Positive = 256
    codebook_size: Positive = 2048
    num_codebooks: Positive = 32
    num_semantic: Positive = 1
    mel: MelConfig | None = None
    whisper: WhisperConfig | None = None

    @property
    def dim(self) -> int:
        """Width of the latent between the encoder and the quantiser."""
        return self.whisper.dim if self.whisper else self.transformer.dim

    @property
    def hop_samples(self) -> int:
        """Samples for each position of the codec's Transformers (960: 25 Hz; with `whisper` 480: 50 Hz)."""
        if self.whisper:
            return self.sample_rate // WHISPER_RATE
        return math.prod(self.ratios) * (self.mel.hop if self.mel else 1)

    @property
    def frame_samples(self) -> int:
        """Samples in one frame (1920)."""
        return round(self.sample_rate / self.frame_rate)

    @property
    def stride(self) -> int:
        """Transformer positions in one frame (2)."""
        return self.frame_samples // self.hop_samples

    @property
    def has_decoder(self) -> bool:
        return self.mel is None and self.whisper is None

    @property
    def delay_frames(self) -> float:
        """Frames by which the encoder's output lags behind the audio (Whisper base: 6.0), a part of the text delay."""
        return self.whisper.delay / self.stride if self.whisper else 0.0

    @model_validator(mode="after")
    def _one_encoder(self) -> CodecConfig:
        if self.whisper and self.mel:
            raise ValueError("mel and whisper exclude each other: whisper has a log-mel front end of its own")
        if self.whisper and (self.sample_rate % 200 or self.sample_rate < 16_000):
            raise ValueError(f"whisper needs a sample rate of at least 16000 and a multiple of 200: {self.sample_rate}")
        return self

    @model_validator(mode="after")
    def _rates_divide(self) -> CodecConfig:
        if self.sample_rate / self.frame_rate != self.frame_samples:
            raise ValueError(f"a frame of {self.sample_rate / self.frame_rate} samples is not a whole number")
        if self.frame_samples % self.hop_samples:
            raise ValueError(
                f"ratios {self.ratios} make a hop of {self.hop_samples} samples, "
                f"which does not divide a frame of {self.frame_samples}"
            )
        if self.num_codebooks <= self.num_semantic:
            raise ValueError(f"num_codebooks={self.num_codebooks} must be more than num_semantic={self.num_semantic}")
        return self


class ConditionerConfig(_Config):
    """A condition added to every input of the LM.

    `continuous`: a number, scaled by `scale_factor` and embedded by sines of `dim` dimensions.
    `lut`: one of `possible_values`, looked up in a table of `num_bins + 1` rows. `tensor`: a vector of `dim` given
    by the caller. Each has a learnt padding, used when no value is given.
    """

    name: str
    kind: Literal["continuous", "lut", "tensor"]
    dim: Positive
    scale_factor: float = 1.0
    max_period: float = 10_000.0
    num_bins: int = 0
    possible_values: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _sines_come_in_pairs(self) -> ConditionerConfig:
        if self.kind == "continuous" and (self.dim % 2 or self.dim < 4):
            raise ValueError(f"a continuous condition needs an even dim of at least 4, not {self.dim}")
        if len(self.possible_values) > self.num_bins and self.kind == "lut":
            raise ValueError(f"{len(self.possible_values)} values do not fit {self.num_bins} bins")
        return self


class LMConfig(_Config):
    """The language model: reads `num_codebooks` audio tokens and its own last text token, writes the next.

    `text_vocab` and `audio_vocab` count the tokens that can be written; each embedding has one row more, the initial
    token. `pause_heads` linear heads of `pause_classes` classes read its output.
    """

    transformer: TransformerConfig
    text_vocab: Positive
    audio_vocab: Positive
    num_codebooks: Positive
    pause_heads: Annotated[int, Field(ge=0)] = 0
    pause_classes: Positive = 6
    conditioners: tuple[ConditionerConfig, ...] = ()

    @property
    def text_initial_id(self) -> int:
        """The text token of position 0."""
        return self.text_vocab

    @property
    def audio_initial_id(self) -> int:
        """The audio token of position 0, in every codebook."""
        return self.audio_vocab


class SamplingConfig(_Config):
    """How a text token is picked: greedy at temperature 0, else from the `top_k` likeliest (0: from all)."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_k: Annotated[int, Field(ge=0)] = 0


class FileNames(_Config):
    """Where a checkpoint's parts lie, relative to its folder or repository."""

    lm: str = "model.safetensors"
    codec: str = "tokenizer-e351c8d8-checkpoint125.safetensors"
    codec_config: str | None = None
    tokenizer: str = "tokenizer_spm_32k_3.model"
    lora: str | None = None


class STTConfig(_Config):
    """A whole model: codec, LM, the delay between audio and text, and the files it is made of.

    `delay_seconds`: how far the text lags; `delay_frames`: the same in frames, as the published server counts it.
    `silence_prefix_seconds`: silence the model wants before speech. `condition_values`: value by conditioner name;
    a conditioner without one uses its learnt padding. `end_of_turn_above`: what the pause head must say for a turn to
    end, where the user sets nothing; our own key of `stt_config`, which other readers pass over.
    """

    codec: CodecConfig
    lm: LMConfig
    delay_seconds: Annotated[float, Field(ge=0)]
    delay_frames: Annotated[int, Field(ge=0)]
    silence_prefix_seconds: Annotated[float, Field(ge=0)] = 0.0
    sampling: SamplingConfig = SamplingConfig()
    files: FileNames = FileNames()
    model_id: dict[str, Any] = {}
    condition_values: dict[str, float | str] = {}
    end_of_turn_above: Annotated[float, Field(ge=0, le=1)] = END_OF_TURN_ABOVE

    @model_validator(mode="after")
    def _codec_feeds_lm(self) -> STTConfig:
        if self.lm.num_codebooks > self.codec.num_codebooks:
            raise ValueError(
                f"the LM reads {self.lm.num_codebooks} codebooks, the codec writes {self.codec.num_codebooks}"
            )
        if self.lm.audio_vocab != self.codec.codebook_size:
            raise ValueError(
                f"the LM's audio vocabulary is {self.lm.audio_vocab}, the codec's codebooks hold "
                f"{self.codec.codebook_size}"
            )
        if self.delay_frames < self.codec.delay_frames:
            raise ValueError(
                f"delay_frames={self.delay_frames} is less than the encoder's own delay of "
                f"{self.codec.delay_frames:g} frames: the LM would have to write words before it reads them"
            )
        return self

    @classmethod
    def read(cls, path: str | Path) -> STTConfig:
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


# ---------------------------------------------------------------------------------------- the Rust server's model table

_RUST_TRANSFORMER_CONSTANTS: dict[str, Any] = {
    "causal": True,
    "norm_first": True,
    "bias_ff": False,
    "bias_attn": False,
    "use_conv_block": False,
    "gating": "silu",
    "norm": "RmsNorm",
    "positional_embedding": "Rope",
    "conv_layout": False,
    "kv_repeat": 1,
    "layer_scale": None,
    "cross_attention": None,
    "shared_cross_attn": False,
}


_RUST_KEYS: dict[str, Kind] = {
    "audio_vocab_size": "count",
    "text_in_vocab_size": "count",
    "text_out_vocab_size": "count",
    "audio_codebooks": "count",
    "transformer": "table",
    "depformer": "table",
    "extra_heads": "table",
    "conditioners": "table",
}
_RUST_TRANSFORMER_KEYS: dict[str, Kind] = {
    "d_model": "count",
    "num_heads": "count",
    "num_layers": "count",
    "dim_feedforward": "count",
    "context": "count",
    "max_period": "positive",
}
# Keys that size caches and parts which are not there.
_RUST_UNUSED_KEYS = ("use_conv_bias", "conv_kernel_size", "max_seq_len")


def parse_rust_model(table: Mapping[str, Any]) -> LMConfig:
    """Read `[modules.asr.model]` of the Rust server's TOML. Raises `ConfigError` that names the key."""
    table = _table(table, _RUST_KEYS, "the model table")
    sizes = ("audio_vocab_size", "text_in_vocab_size", "text_out_vocab_size", "audio_codebooks", "transformer")
    require(table, sizes, "the model table")
    if "depformer" in table:
        raise ConfigError("model.depformer: a speech-to-text model has none")
    transformer = _table_with_constants(
        table["transformer"],
        _RUST_TRANSFORMER_KEYS,
        _RUST_TRANSFORMER_CONSTANTS,
        "model.transformer",
        _RUST_UNUSED_KEYS,
    )
    require(transformer, tuple(_RUST_TRANSFORMER_KEYS), "model.transformer")
    if table["text_in_vocab_size"] != table["text_out_vocab_size"] + 1:
        raise ConfigError(
            f"text_in_vocab_size={table['text_in_vocab_size']} must be text_out_vocab_size + 1 = "
            f"{table['text_out_vocab_size'] + 1}: one row more, the initial token"
        )
    if table["audio_vocab_size"] < 2:
        raise ConfigError("audio_vocab_size=1 leaves no audio token: it counts the initial token too")
    heads = _table(table.get("extra_heads"), {"num_heads": "natural", "dim": "count"}, "model.extra_heads")
    dim, feed_forward = transformer["d_model"], transformer["dim_feedforward"]
    return _validate(
        LMConfig,
        {
            "transformer": {
                "dim": dim,
                "num_heads": transformer["num_heads"],
                "num_layers": transformer["num_layers"],
                "ffn_dim": 11 * dim // 4 if feed_forward == 4 * dim else 2 * feed_forward // 3,
                "context": transformer["context"],
                "max_period": transformer["max_period"],
                "norm": "rms_norm",
                "gated": True,
            },
            "text_vocab": table["text_out_vocab_size"],
            "audio_vocab": table["audio_vocab_size"] - 1,
            "num_codebooks": table["audio_codebooks"],
            "pause_heads": heads.get("num_heads", 0),
            "pause_classes": heads.get("dim", 6),
            "conditioners": _conditioners(table.get("conditioners", {}), {}),
        },
    )


# -------------------------------------------------------------------------------------------------------------- presets


def _published(dim: int, heads: int, layers: int, context: int, text_vocab: int, pause_heads: int) -> LMConfig:
    return LMConfig(
        transformer=TransformerConfig(
            dim=dim,
            num_heads=heads,
            num_layers=layers,
            ffn_dim=5632,  # 2 * 8448 // 3, 8448 = 4.125 * 2048
            context=context,
            max_period=100_000.0,
            norm="rms_norm",
            gated=True,
        ),
        text_vocab=text_vocab,
        audio_vocab=2048,
        num_codebooks=32,
        pause_heads=pause_heads,
    )


def _published_1b(pause_heads: int) -> STTConfig:
    return STTConfig(
        codec=CodecConfig(),
        lm=_published(dim=2048, heads=16, layers=16, context=750, text_vocab=8000, pause_heads=pause_heads),
        delay_seconds=0.5,
        delay_frames=6,
        sampling=SamplingConfig(temperature=0.0, top_k=50),
        files=FileNames(codec="mimi-pytorch-e351c8d8@125.safetensors", tokenizer="tokenizer_en_fr_audio_8000.model"),
    )


PRESETS: dict[str, STTConfig] = {
    # The same model twice; only the second has the pause heads (131 and 135 tensors).
    "kyutai/stt-1b-en_fr": _published_1b(pause_heads=0),
    "kyutai/stt-1b-en_fr-candle": _published_1b(pause_heads=4),
    "kyutai/stt-2.6b-en": STTConfig(
        codec=CodecConfig(),
        lm=_published(dim=2048, heads=32, layers=48, context=375, text_vocab=4000, pause_heads=0),
        delay_seconds=2.5,
        delay_frames=32,
        silence_prefix_seconds=1.0,
        sampling=SamplingConfig(temperature=0.0, top_k=50),
        files=FileNames(codec="mimi-pytorch-e351c8d8@125.safetensors", tokenizer="tokenizer_en_audio_4000.model"),
        model_id={"sig": "dabcc802", "epoch": 50},
    ),
}


# -------------------------------------------------------------------------------------------------------------- helpers


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises `ConfigError` when it is not there or not one."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(raw).__name__}")
    return raw


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises `ConfigError` when it is not there or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def said(problem: ErrorDetails) -> str:
    """What a `ValidationError` says of one problem, without pydantic's prefix to a validator's own words."""
    return problem["msg"].removeprefix("Value error, ")


def check_keys(raw: Mapping[str, Any], known: Any, where: str) -> None:
    """Raise `ConfigError` for the first key of `raw` that is not in `known`, naming the nearest known one."""
    for key in raw:
        if key not in known:
            raise ConfigError(unknown_key(key, known, where))


def unknown_key(key: str, known: Iterable[str], where: str) -> str:
    """What is wrong with `key`: that it is not one of `known`, and which of those is nearest."""
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(known))}"
    return f"unknown key {key!r} in {where}{hint}"


Kind = Literal["count", "natural", "positive", "not negative", "number", "text", "flag", "table", "list"]
"""What a published key must hold: checked before any arithmetic, so that the error names the key as published."""


def _is_kind(value: Any, kind: Kind) -> bool:
    if kind in ("count", "natural"):
        return type(value) is int and value >= (kind == "count")
    if kind in ("positive", "not negative", "number"):
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        return kind == "number" or value > 0 or (kind == "not negative" and value == 0)
    return isinstance(value, {"text": str, "flag": bool, "table": Mapping, "list": list}[kind])


_KIND_WORDS: dict[Kind, str] = {
    "count": "a whole number above 0",
    "natural": "a whole number, 0 or more",
    "positive": "a number above 0",
    "not negative": "a number, 0 or more",
    "number": "a number",
    "text": "text",
    "flag": "true or false",
    "table": "a table",
    "list": "a list",
}


def checked(raw: Mapping[str, Any], kinds: Mapping[str, Kind], where: str) -> dict[str, Any]:
    """The keys of `raw` that hold a value (null is as good as absent), each of the kind it must be."""
    for key, kind in kinds.items():
        if raw.get(key) is not None and not _is_kind(raw[key], kind):
            raise ConfigError(f"{where}: {key} must be {_KIND_WORDS[kind]}, not {raw[key]!r}")
    return {key: value for key, value in raw.items() if value is not None}


def _table(raw: Any, kinds: Mapping[str, Kind], where: str) -> dict[str, Any]:
    """A table of which every key is known and every value of its kind; an absent table is an empty one."""
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} must be a table, not {raw!r}")
    check_keys(raw, kinds, where)
    return checked(raw, kinds, where)


def _table_with_constants(
    raw: Any, kinds: Mapping[str, Kind], constants: Mapping[str, Any], where: str, unused: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A table that holds besides: keys whose values can only be these `constants`, and keys that change nothing."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} must be a table, not {raw!r}")
    check_keys(raw, {*kinds, *constants, *unused}, where)
    check_constants(raw, constants, where)
    return checked(raw, kinds, where)


def require(raw: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    missing = [key for key in keys if key not in raw]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")


def check_constants(raw: Mapping[str, Any], constants: Mapping[str, Any], where: str) -> None:
    for key, value in constants.items():
        if key in raw and raw[key] != value:
            raise ConfigError(f"{where}.{key}={raw[key]!r} cannot be run here: only {value!r} is supported")


def _validate(model: type[_Model], fields: dict[str, Any]) -> _Model:
    try:
        # Through JSON, so that lists become tuples while strings stay strings: strict, in JSON's own types.
        return model.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, e['loc']))}: {said(e)} (got {e['input']!r})" if e["loc"] else said(e)
            for e in error.errors()
        )
        raise ConfigError("; ".join(problems)) from error


def _either(values: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, values))
