"""Kyutai's PyTorch format: `config.json`, and the LM's tensors under the names of the `moshi` package.

The Rust server reads the same tensors. The codec's file is described in `mimi`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from slipstream.checkpoints.depth import depth_entries, joined, rust_depth_entries
from slipstream.checkpoints.eight_bit import kept, unpacked
from slipstream.checkpoints.mimi import ATTENTION_ALIASES, dump_codec, parse_codec
from slipstream.checkpoints.tables import Entries, Same, Stacked, Table, make_rules
from slipstream.checkpoints.tensors import Array, Tensors
from slipstream.errors import ConfigError
from slipstream.model.confidence import Calibration, EndingCurve
from slipstream.model.config import (
    END_OF_TURN_ABOVE,
    CodecConfig,
    ConditionerConfig,
    LMConfig,
    RecordingsConfig,
    STTConfig,
    WhisperDecoderConfig,
)
from slipstream.model.names import Shapes, lm_shapes
from slipstream.schema import (
    Count,
    Must,
    Natural,
    NonNegativeNumber,
    Number,
    PositiveNumber,
    Section,
    parse,
)

logger = logging.getLogger(__name__)

# ----------------------------------------------------------------------------------------------------- config.json


class ConditionerBody(Section):
    """The parameters of a conditioner."""

    dim: Count
    scale_factor: Number | None = None
    max_period: PositiveNumber | None = None
    num_bins: Count | None = Field(None, alias="n_bins")
    tokenizer: Literal["noop"] | None = None
    possible_values: list[str] | None = None
    init_scale: Number | None = None

    def config(self, name: str, kind: str) -> dict[str, Any]:
        """The fields of a `ConditionerConfig`."""
        fields = {"dim", "num_bins", "possible_values"} if kind == "lut" else {"dim", "scale_factor", "max_period"}
        return {"name": name, "kind": kind, **self.model_dump(include=fields, exclude_none=True)}


class _Lut(ConditionerBody):
    num_bins: Count = Field(alias="n_bins")


class Conditioner(Section):
    """A conditioner: its type, and its parameters in a table of that name."""

    type: Literal["continuous", "lut", "tensor"]
    continuous: ConditionerBody | None = None
    lut: _Lut | None = None
    tensor: ConditionerBody | None = None


class Fuser(Section):
    """Which conditions are added to the input, and which the layers attend to."""

    sum: list[str] | None = None
    cross: list[str] | None = None
    prepend: list[str] | None = None
    cross_attention_pos_emb: bool | None = None
    cross_attention_pos_emb_scale: PositiveNumber | None = None


class _Sampling(Section):
    audio_temperature: NonNegativeNumber = Field(0.0, alias="temp")
    temperature: NonNegativeNumber = Field(0.0, alias="temp_text")
    audio_top_k: Natural = Field(0, alias="top_k")
    top_k: Natural = Field(0, alias="top_k_text")
    cfg_coef: NonNegativeNumber | None = None


class _Stt(Section):
    delay_seconds: NonNegativeNumber = Field(alias="audio_delay_seconds")
    silence_prefix_seconds: NonNegativeNumber = Field(0.0, alias="audio_silence_prefix_seconds")
    delay_frames: Natural | None = None
    condition_values: dict[str, Any] | None = None
    end_of_turn_above: NonNegativeNumber | None = None
    end_of_turn: EndingCurve | None = None
    min_confidence: NonNegativeNumber | None = None
    beam: Natural | None = None
    word_shift_seconds: Annotated[float, Field(ge=-1, le=1), Must("a number from -1 to 1")] | None = None
    confidence: Calibration | None = None
    recordings: RecordingsConfig | None = None


class KyutaiKeys(Section):
    """The keys of `config.json` that describe any LM, and its files.

    Keys with a default value other than None are written. A `Literal` has the values for which the computation here
    is that of the checkpoint.
    """

    audio_vocab: Count = Field(alias="card")
    num_codebooks: Count = Field(alias="n_q")
    delays: list[int] | None = None
    dim: Count
    text_vocab: Count = Field(alias="text_card")
    existing_text_padding_id: Literal[3] = 3
    existing_text_end_padding_id: Literal[0] | None = None
    num_heads: Count
    num_layers: Count
    hidden_scale: PositiveNumber = 4.0
    causal: Literal[True] = True
    layer_scale: None = None
    context: Count
    max_period: PositiveNumber = 10_000.0
    conditioners: dict[str, Conditioner] = Field({})
    fuser: Fuser | None = None
    pause_heads: Natural = Field(0, alias="extra_heads_num_heads")
    pause_classes: Count = Field(6, alias="extra_heads_dim")
    bias_proj: Literal[False] | None = None
    kv_repeat: Literal[1] | None = None
    norm_emb: Literal[False] | None = None
    quantize: Literal[False] | None = None
    lora: bool | None = None
    lora_file: str | None = Field(None, alias="lora_name")
    lora_rank: Count | None = None
    lora_scaling: PositiveNumber | None = None
    lm_file: str | None = Field(None, alias="moshi_name")
    codec_file: str | None = Field(None, alias="mimi_name")
    codec_config_file: str | None = Field(None, alias="mimi_config_name")
    tokenizer_file: str | None = Field(None, alias="tokenizer_name")
    model_id: dict[str, Any] = Field({})

    @property
    def files(self) -> dict[str, str]:
        """The fields of a `FileNames`."""
        names = self.model_dump(include={f"{part}_file" for part in FILES}, exclude_none=True)
        return {name.removesuffix("_file"): file for name, file in names.items()}


class KyutaiLM(KyutaiKeys):
    """The keys of `config.json` that describe the LM of a speech-to-text model."""

    # They shape parts that a speech-to-text model does not have (dep_q is 0).
    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            *(f"depformer_{part}" for part in ("causal", "context", "dim", "dim_feedforward", "gating", "layer_scale")),
            *(f"depformer_{part}" for part in ("low_rank_embeddings", "max_period", "multi_linear", "norm")),
            *(f"depformer_{part}" for part in ("num_heads", "num_layers", "pos_emb", "weights_per_step")),
            "depformer_weights_per_step_schedule",
            "gradient_checkpointing",
            "tts_config",
        }
    )
    dep_q: Literal[0] = 0
    gating: Literal["silu"] = "silu"
    norm: Literal["rms_norm_f32"] = "rms_norm_f32"
    positional_embedding: Literal["rope"] = "rope"
    cross_attention: Literal[False] = False
    model_type: Literal["stt"] = "stt"
    demux_second_stream: Literal[False] | None = None
    demux_second_text_stream: Literal[False] | None = None
    text_card_out: None = None
    sampling: _Sampling | None = Field(None, alias="lm_gen_config")
    # Our own key, for Whisper's decoder as the LM; then norm, gating and positional_embedding mean nothing.
    whisper: WhisperDecoderConfig | None = None
    stt: Any = Field(None, alias="stt_config")

    def lm(self) -> LMConfig:
        """The canonical configuration of the LM. Raises `ConfigError` for values that contradict each other."""
        if any(self.delays or ()):
            raise ConfigError(f"delays={self.delays}: all codebooks of a speech-to-text model have delay 0")
        if self.delays and len(self.delays) != self.num_codebooks + 1:
            raise ConfigError(f"delays has {len(self.delays)} entries, expected n_q + 1 = {self.num_codebooks + 1}")
        fuser, names = self.fuser or Fuser(), list(self.conditioners)
        for method in ("cross", "prepend"):
            if unsupported := getattr(fuser, method):
                raise ConfigError(f"fuser.{method}={unsupported}: only summed conditions are supported (fuser.sum)")
        if fuser.sum is not None and sorted(fuser.sum) != sorted(names):
            raise ConfigError(f"fuser.sum={fuser.sum} must name each of the conditioners {names}, and no other")
        shared = {"audio_vocab", "num_codebooks", "text_vocab", "pause_heads", "pause_classes"}
        width = int(self.hidden_scale * self.dim)
        shape: dict[str, Any] = {"ffn_dim": gated_width(self.dim, width), "norm": "rms_norm", "gated": True}
        if self.whisper:
            shape = {"ffn_dim": width, "norm": "layer_norm", "gated": False, "positions": "none"}
            shared = shared | {"whisper"}
        fields = {
            "transformer": {
                **self.model_dump(include={"dim", "num_heads", "num_layers", "context", "max_period"}),
                **shape,
            },
            "conditioners": [conditioner(name, spec) for name, spec in self.conditioners.items()],
            **self.model_dump(include=shared),
        }
        return parse(LMConfig, fields, "config.json")


class KyutaiConfig(KyutaiLM):
    """A whole `config.json`."""

    stt: _Stt = Field(alias="stt_config")


FILES = ("lm", "codec", "codec_config", "tokenizer", "lora")
# Parts that a speech-to-text model does not have, as Kyutai write them.
_DEPFORMER = {
    "depformer_dim": 1024,
    "depformer_num_heads": 16,
    "depformer_num_layers": 6,
    "depformer_dim_feedforward": None,
    "depformer_multi_linear": True,
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
}
# The frames of each published delay, as the published server counts them; other delays are rounded down.
_PUBLISHED_DELAY_FRAMES = {0.5: 6, 2.5: 32}


def delay_in_frames(seconds: float, frame_rate: float = 12.5) -> int:
    """Frames of text delay for a delay in seconds, as the published server counts them."""
    # Rounded first: 2.32 * 12.5 is slightly less than 29.
    return _PUBLISHED_DELAY_FRAMES.get(seconds, math.floor(round(seconds * frame_rate, 6)))


def parse_kyutai(raw: Mapping[str, Any], codec: Mapping[str, Any] | None = None) -> STTConfig:
    """Turn the content of a published `config.json` into an `STTConfig`.

    Args:
        raw: The content of the file.
        codec: The content of the codec's own file, for a codec other than the published Mimi.

    Raises:
        ConfigError: A key or value is wrong; the message describes every problem.
    """
    file = parse(KyutaiConfig, raw, "config.json")
    codec_config = parse_codec(codec) if codec is not None else CodecConfig()
    stt = file.stt.model_dump(exclude_none=True)
    fields = {
        "delay_frames": delay_in_frames(file.stt.delay_seconds, codec_config.frame_rate),
        **stt,
        "codec": codec_config.model_dump(),
        "lm": file.lm().model_dump(),
        "sampling": file.sampling.model_dump(include={"temperature", "top_k"}) if file.sampling else {},
        "files": file.files,
        "model_id": file.model_id,
    }
    return parse(STTConfig, fields, "config.json")


def parse_lm(raw: Mapping[str, Any]) -> LMConfig:
    """The LM that a published `config.json` describes; `stt_config` may be missing. Raises `ConfigError`."""
    return parse(KyutaiLM, raw, "config.json").lm()


def dump_kyutai(config: STTConfig) -> dict[str, Any]:
    """The inverse of `parse_kyutai`: the content of a `config.json`, which Kyutai's loaders read too.

    Raises `ConfigError` for an LM that the file cannot describe.
    """
    lm, transformer = config.lm, config.lm.transformer
    if not lm.whisper and (transformer.norm != "rms_norm" or not transformer.gated or transformer.layer_scale):
        raise ConfigError("config.json can only describe an LM with RMSNorm, gated feed-forwards and no LayerScale")
    names = [conditioner.name for conditioner in lm.conditioners]
    threshold = config.end_of_turn_above
    sampling = config.sampling.model_dump()
    file = KyutaiConfig.model_construct(
        **{
            name: getattr(lm, name)
            for name in KyutaiConfig.model_fields
            if name in LMConfig.model_fields and name != "delays"
        },
        **{name: getattr(transformer, name) for name in ("dim", "num_heads", "num_layers", "context", "max_period")},
        **{f"{name}_file": getattr(config.files, name) for name in FILES},
    )
    written = file.model_dump(by_alias=True, exclude_none=True, exclude={"conditioners", "fuser", "sampling", "stt"})
    if lm.whisper and not lm.languages:
        del written["whisper"]["languages"]
    stt: dict[str, Any] = {
        "audio_delay_seconds": config.delay_seconds,
        "audio_silence_prefix_seconds": config.silence_prefix_seconds,
        "delay_frames": config.delay_frames,
    }
    if config.condition_values:
        stt["condition_values"] = dict(config.condition_values)
    if threshold != END_OF_TURN_ABOVE:
        stt["end_of_turn_above"] = threshold
    if config.min_confidence:
        stt["min_confidence"] = config.min_confidence
    if config.beam > 1:
        stt["beam"] = config.beam
    if config.word_shift_seconds:
        stt["word_shift_seconds"] = config.word_shift_seconds
    for name in ("end_of_turn", "confidence", "recordings"):
        if (part := getattr(config, name)) is not None:
            stt[name] = part.model_dump(mode="json", exclude_none=True)
    return {
        **written,
        **_DEPFORMER,
        "delays": [0] * (lm.num_codebooks + 1),
        "hidden_scale": _hidden_scale(lm),
        "layer_scale": None,
        "conditioners": {c.name: dump_conditioner(c) for c in lm.conditioners},
        "model_id": config.model_id,
        "lm_gen_config": {
            "temp": sampling["temperature"],
            "temp_text": sampling["temperature"],
            "top_k": sampling["top_k"],
            "top_k_text": sampling["top_k"],
        },
        "stt_config": stt,
        **({"fuser": {"sum": names, "cross": [], "prepend": []}} if names else {}),
    }


def dump_files(config: STTConfig) -> dict[str, dict[str, Any]]:
    """The configuration files, by name: `config.json`, and the codec's own file if `config.files` names one."""
    codec = {config.files.codec_config: dump_codec(config.codec)} if config.files.codec_config else {}
    return {"config.json": dump_kyutai(config), **codec}


def gated_width(dim: int, feed_forward: int) -> int:
    """The width of a gated layer, which keeps the parameter count of a plain one of that width."""
    # See `ActivationGating` upstream.
    return 21 * dim // 8 if feed_forward == 4 * dim else 2 * feed_forward // 3


def hidden_scale(dim: int, ffn_dim: int) -> float:
    """The scale from which `parse_kyutai` gets this feed-forward width. Raises `ConfigError` if there is none."""
    if ffn_dim == 21 * dim // 8:
        return 4
    for feed_forward in ((3 * ffn_dim + 1) // 2, 3 * ffn_dim // 2 + 1):
        if 2 * feed_forward // 3 == ffn_dim and feed_forward != 4 * dim:
            scale = feed_forward / dim
            return scale if int(scale * dim) == feed_forward else math.nextafter(scale, math.inf)
    raise ConfigError(f"config.json has no hidden_scale for a feed-forward width of {ffn_dim} with dim={dim}")


def _hidden_scale(lm: LMConfig) -> float:
    dim, ffn_dim = lm.transformer.dim, lm.transformer.ffn_dim
    if not lm.whisper:
        return hidden_scale(dim, ffn_dim)
    scale = ffn_dim / dim
    return scale if int(scale * dim) == ffn_dim else math.nextafter(scale, math.inf)


def conditioner(name: str, spec: Conditioner) -> dict[str, Any]:
    """The fields of a `ConditionerConfig`. Raises `ConfigError` if the parameters are missing."""
    body: ConditionerBody | None = getattr(spec, spec.type)
    if body is None:
        raise ConfigError(f"conditioners.{name} lacks {spec.type}")
    return body.config(name, spec.type)


def dump_conditioner(conditioner: ConditionerConfig) -> dict[str, Any]:
    """The inverse of `conditioner`: its table in the file."""
    body: dict[str, Any] = {"dim": conditioner.dim}
    if conditioner.kind == "continuous":
        body |= {"scale_factor": conditioner.scale_factor, "max_period": conditioner.max_period}
    elif conditioner.kind == "lut":
        values = list(conditioner.possible_values)
        body |= {"n_bins": conditioner.num_bins, "tokenizer": "noop", "possible_values": values}
    return {"type": conditioner.kind, conditioner.kind: body}


# --------------------------------------------------------------------------------------------------------- tensors

_CROSS_ALIASES = (
    (r"cross_attention\.in_proj(s\.0)?\.weight$", "cross_attention.in_proj_weight"),
    (r"cross_attention\.out_projs\.0\.weight$", "cross_attention.out_proj.weight"),
)
_SURPLUS = r"(emb|extra_heads)\.\d+\.weight$"


def lm_table(config: LMConfig) -> Table:
    """The LM's tensors as the `moshi` package names them; without a depth Transformer, the Rust server too."""
    return _table(config, depth_entries(config.depth) if config.depth else {})


def rust_lm_table(config: LMConfig) -> Table:
    """The LM's tensors as the Rust server names them."""
    return _table(config, rust_depth_entries(config.depth) if config.depth else {})


def _table(config: LMConfig, depth: Entries) -> Table:
    layer = "transformer.layers.{i}."
    conditioner = "condition_provider.conditioners.{name}."
    entries: Entries = {
        "text_emb.{projection}.weight": Same("text_emb.{projection}.weight"),
        "text_emb.weight": Same("text_emb.weight"),
        "audio_emb.weight": Stacked("emb.{k}.weight", config.num_codebooks),
        "conditioners.{name}.embed.weight": Same(conditioner + "embed.weight"),
        "conditioners.{name}.output_proj.weight": Same(conditioner + "output_proj.weight"),
        "conditioners.{name}.learnt_padding": Same(conditioner + "learnt_padding", lead=2),
        **norm_entries("transformer.layers.{i}.{norm}", layer + "{norm}", config.transformer.norm),
        "transformer.layers.{i}.attn.in_proj.weight": Same(layer + "self_attn.in_proj_weight"),
        "transformer.layers.{i}.attn.out_proj.weight": Same(layer + "self_attn.out_proj.weight"),
        "transformer.layers.{i}.cross.norm.{part}": Same(layer + "norm_cross.{part}"),
        "transformer.layers.{i}.cross.in_proj.weight": Same(layer + "cross_attention.in_proj_weight"),
        "transformer.layers.{i}.cross.out_proj.weight": Same(layer + "cross_attention.out_proj.weight"),
        **_feed_forward(layer, config.transformer.gated),
        **norm_entries("out_norm", "out_norm", config.transformer.norm),
        "text_linear.weight": Same("text_linear.weight"),
        "pause_heads.weight": Stacked("extra_heads.{k}.weight", config.pause_heads),
        **depth,
    }
    if config.whisper:  # whose tensors keep their canonical names: no such LM is published
        own: Entries = {name: Same(name) for name in lm_shapes(config) if name.startswith("transformer.")}
        entries = own | entries
    rules = make_rules(lm_shapes(config), entries)
    # Models that were trained to speak too have `depformer_in`, which a speech-to-text model does not use.
    skipped = r"(?!)" if config.depth else r"depformer_in\."

    def decode(tensors: Tensors, shapes: Shapes) -> dict[str, Array]:
        return joined(unpacked(tensors, shapes)) if config.depth else kept(tensors, shapes)

    aliases = ATTENTION_ALIASES + _CROSS_ALIASES
    return Table(rules, aliases=aliases, skipped=skipped, surplus=_SURPLUS, decode=decode)


def norm_entries(ours: str, theirs: str, norm: str) -> Entries:
    """The weights of norms: a root-mean-square norm has an `alpha` with two more axes."""
    if norm == "rms_norm":
        return {f"{ours}.weight": Same(f"{theirs}.alpha", lead=2)}
    return {f"{ours}.{{part}}": Same(f"{theirs}.{{part}}")}


def _feed_forward(layer: str, gated: bool) -> Entries:
    if gated:
        return {"transformer.layers.{i}.ffn.{linear}.weight": Same(layer + "gating.{linear}.weight")}
    names = {"linear_in": "linear1", "linear_out": "linear2"}
    return {
        f"transformer.layers.{{i}}.ffn.{ours}.weight": Same(f"{layer}{name}.weight") for ours, name in names.items()
    }
