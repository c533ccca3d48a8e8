"""The `config.json` of Kyutai's text-to-speech models; the tensors are described in `kyutai` and `depth`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from slipstream.checkpoints.kyutai import (
    FILES,
    KyutaiKeys,
    conditioner,
    dump_conditioner,
    gated_width,
    hidden_scale,
)
from slipstream.checkpoints.mimi import parse_codec
from slipstream.errors import ConfigError
from slipstream.model.config import CodecConfig, LMConfig
from slipstream.model.tts_config import TTSConfig
from slipstream.schema import Count, Natural, NonNegativeNumber, PositiveNumber, Section, check_fixed, parse

_NORMS = {"rms_norm_f32": "rms_norm", "layer_norm": "layer_norm"}
Norm = Literal["rms_norm_f32", "layer_norm"]


class _Tts(Section):
    delay_seconds: NonNegativeNumber = Field(alias="audio_delay")
    second_stream_ahead: Natural = 0
    multistream: bool = False
    max_speakers: Count = 5


class _Sampling(Section):
    ignored: ClassVar[frozenset[str]] = frozenset({"cfg_coef"})
    audio_temperature: NonNegativeNumber = Field(0.6, alias="temp")
    audio_top_k: Natural = Field(250, alias="top_k")
    text_temperature: NonNegativeNumber | None = Field(None, alias="temp_text")
    published_text_temperature: NonNegativeNumber | None = Field(None, alias="text_temp")
    text_top_k: Natural = Field(25, alias="top_k_text")

    def config(self) -> dict[str, Any]:
        """The fields of a `SpeechSampling`."""
        temperatures = (self.text_temperature, self.published_text_temperature, self.audio_temperature)
        text = next(value for value in temperatures if value is not None)
        return {
            "text": {"temperature": text, "top_k": self.text_top_k},
            "audio": {"temperature": self.audio_temperature, "top_k": self.audio_top_k},
        }


class KyutaiSpeechLM(KyutaiKeys):
    """The keys of `config.json` that describe an LM that writes audio."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        {"gradient_checkpointing", "depformer_causal", "depformer_context", "stt_config"}
    )
    dep_q: Count
    gating: Literal["silu", "none"] = "silu"
    norm: Norm = "rms_norm_f32"
    positional_embedding: Literal["rope", "sin", "none"] = "rope"
    cross_attention: bool | list[str] = False
    model_type: Literal["tts", "moshi", "hibiki"] = "tts"
    demux_second_stream: bool | None = None
    demux_second_text_stream: bool | None = None
    text_card_out: Count | None = None
    depth_dim: Count = Field(256, alias="depformer_dim")
    depth_heads: Count | None = Field(None, alias="depformer_num_heads")
    depth_layers: Count | None = Field(None, alias="depformer_num_layers")
    depth_feed_forward: Count | None = Field(None, alias="depformer_dim_feedforward")
    depth_multi_linear: bool = Field(False, alias="depformer_multi_linear")
    depth_weights_per_step: bool = Field(False, alias="depformer_weights_per_step")
    depth_schedule: list[int] | None = Field(None, alias="depformer_weights_per_step_schedule")
    depth_low_rank: Count | None = Field(None, alias="depformer_low_rank_embeddings")
    depth_positions: Literal["sin", "none"] = Field("sin", alias="depformer_pos_emb")
    depth_norm: Norm | None = Field(None, alias="depformer_norm")
    depth_gating: Literal["silu"] | None = Field(None, alias="depformer_gating")
    depth_max_period: PositiveNumber | None = Field(None, alias="depformer_max_period")
    depth_layer_scale: None = Field(None, alias="depformer_layer_scale")
    depth_kv_repeat: Literal[1] | None = Field(None, alias="depformer_kv_repeat")
    sampling: _Sampling | None = Field(None, alias="lm_gen_config")
    tts: Any = Field(None, alias="tts_config")

    def lm(self) -> LMConfig:
        """The canonical configuration of the LM. Raises `ConfigError` for values that contradict each other."""
        check_fixed(self, {"depth_multi_linear": True, "depth_weights_per_step": True}, "config.json")
        if self.gating != "silu" and self.depth_gating is None:
            raise ConfigError("depformer_gating must be 'silu': the depth Transformer has gated feed-forwards")
        feed_forward = int(self.hidden_scale * self.dim)
        fields = {
            "transformer": {
                **self.model_dump(include={"dim", "num_heads", "num_layers", "context", "max_period"}),
                "ffn_dim": gated_width(self.dim, feed_forward) if self.gating == "silu" else feed_forward,
                "norm": _NORMS[self.norm],
                "gated": self.gating == "silu",
                "positions": self.positional_embedding,
                "cross_attention": bool(self.cross_attention),
            },
            "conditioners": self._conditioners(),
            "delays": self.delays or [],
            "text_outputs": self.text_card_out,
            "demux_text": bool(self.demux_second_stream or self.demux_second_text_stream),
            "depth": self._depth(),
            "cross_position_scale": self._cross_position_scale(),
            **self.model_dump(include={"audio_vocab", "num_codebooks", "text_vocab", "pause_heads", "pause_classes"}),
        }
        return parse(LMConfig, fields, "config.json")

    def _conditioners(self) -> list[dict[str, Any]]:
        names = list(self.conditioners)
        fuser = self.fuser
        if fuser is None:
            return [conditioner(name, spec) for name, spec in self.conditioners.items()]
        if fuser.prepend:
            raise ConfigError(f"fuser.prepend={fuser.prepend}: only fuser.sum and fuser.cross are supported")
        summed, crossed = fuser.sum or [], fuser.cross or []
        if sorted(summed + crossed) != sorted(names):
            raise ConfigError(
                f"fuser.sum={summed} and fuser.cross={crossed} must name each of the conditioners {names} once"
            )
        # In the order of the fuser, in which they are joined.
        return [
            {**conditioner(name, self.conditioners[name]), "fuse": "cross" if name in crossed else "sum"}
            for name in summed + crossed
        ]

    def _cross_position_scale(self) -> float:
        if self.fuser is None or not self.fuser.cross_attention_pos_emb:
            return 0.0
        scale = self.fuser.cross_attention_pos_emb_scale
        return 1.0 if scale is None else scale

    def _depth(self) -> dict[str, Any]:
        dim = self.depth_dim
        feed_forward = self.depth_feed_forward or int(self.hidden_scale * dim)
        return {
            "transformer": {
                "dim": dim,
                "num_heads": self.depth_heads or self.num_heads,
                "num_layers": self.depth_layers or self.num_layers,
                "ffn_dim": gated_width(dim, feed_forward),
                "context": self.dep_q,
                "max_period": self.depth_max_period or self.max_period,
                "norm": _NORMS[self.norm],
                "gated": True,
                "positions": self.depth_positions,
            },
            "num_codebooks": self.dep_q,
            "schedule": self.depth_schedule or list(range(self.dep_q)),
            "low_rank": self.depth_low_rank,
            "output_norm": _NORMS[self.depth_norm] if self.depth_norm else None,
        }


class KyutaiTTS(KyutaiSpeechLM):
    """A whole `config.json` of a text-to-speech model."""

    tts: _Tts = Field(alias="tts_config")


def parse_tts(raw: Mapping[str, Any], codec: Mapping[str, Any] | None = None) -> TTSConfig:
    """Turn the content of a published `config.json` into a `TTSConfig`.

    Args:
        raw: The content of the file.
        codec: The content of the codec's own file, for a codec other than the published Mimi.

    Raises:
        ConfigError: A key or value is wrong, or the model is not one for text to speech.

    Example:
        >>> parse_tts(read_json(path)).delay_steps  # doctest: +SKIP
        16
    """
    if not raw.get("dep_q"):
        raise ConfigError(
            "this is a model without audio output (dep_q is 0): use a text-to-speech model, such as "
            "kyutai/tts-1.6b-en_fr, or `slipstream.load` for a speech-to-text model"
        )
    file = parse(KyutaiTTS, raw, "config.json")
    fields = {
        **file.tts.model_dump(),
        "codec": (parse_codec(codec) if codec is not None else CodecConfig()).model_dump(),
        "lm": file.lm().model_dump(),
        "sampling": (file.sampling or _Sampling.model_validate({})).config(),
        "files": file.files,
        "model_id": file.model_id,
    }
    return parse(TTSConfig, fields, "config.json")


def dump_tts(config: TTSConfig) -> dict[str, Any]:
    """The inverse of `parse_tts`: the content of a `config.json`, which Kyutai's loaders read too."""
    lm, transformer, sampling = config.lm, config.lm.transformer, config.sampling
    files = {f"{part}_file": getattr(config.files, part) for part in FILES}
    named = KyutaiKeys.model_construct(**files).model_dump(by_alias=True, include=set(files), exclude_none=True)
    gated = transformer.gated
    fused = {how: [c.name for c in lm.conditioners if c.fuse == how] for how in ("sum", "cross")}
    written: dict[str, Any] = {
        **named,
        **transformer.model_dump(include={"dim", "num_heads", "num_layers", "context", "max_period"}),
        "card": lm.audio_vocab,
        "n_q": lm.num_codebooks,
        "delays": list(lm.stream_delays),
        "text_card": lm.text_vocab,
        "text_card_out": lm.text_outputs,
        "existing_text_padding_id": 3,
        "hidden_scale": hidden_scale(transformer.dim, transformer.ffn_dim)
        if gated
        else _scale(transformer.ffn_dim, lm),
        "causal": True,
        "layer_scale": None,
        "gating": "silu" if gated else "none",
        "norm": _norm_name(transformer.norm),
        "positional_embedding": transformer.positions,
        "cross_attention": transformer.cross_attention,
        "demux_second_stream": lm.demux_text,
        "extra_heads_num_heads": lm.pause_heads,
        "extra_heads_dim": lm.pause_classes,
        "conditioners": {c.name: dump_conditioner(c) for c in lm.conditioners},
        "model_type": "tts",
        "model_id": config.model_id,
        "lm_gen_config": {
            "temp": sampling.audio.temperature,
            "temp_text": sampling.text.temperature,
            "top_k": sampling.audio.top_k,
            "top_k_text": sampling.text.top_k,
        },
        "tts_config": {
            "audio_delay": config.delay_seconds,
            "second_stream_ahead": config.second_stream_ahead,
            "multistream": config.multistream,
            "max_speakers": config.max_speakers,
        },
        **_dump_depth(lm),
    }
    if lm.conditioners:
        scale = lm.cross_position_scale
        positions = {"cross_attention_pos_emb": scale > 0, "cross_attention_pos_emb_scale": scale or 1.0}
        written["fuser"] = {**positions, **fused, "prepend": []}
    return written


def _dump_depth(lm: LMConfig) -> dict[str, Any]:
    depth = lm.depth
    assert depth is not None
    transformer = depth.transformer
    dim, width = transformer.dim, transformer.ffn_dim
    feed_forward = 4 * dim if width == 21 * dim // 8 else int(hidden_scale(dim, width) * dim)
    return {
        "dep_q": depth.num_codebooks,
        "depformer_dim": dim,
        "depformer_num_heads": transformer.num_heads,
        "depformer_num_layers": transformer.num_layers,
        "depformer_dim_feedforward": feed_forward,
        "depformer_max_period": transformer.max_period,
        "depformer_gating": "silu",
        "depformer_multi_linear": True,
        "depformer_pos_emb": transformer.positions,
        "depformer_weights_per_step": True,
        "depformer_weights_per_step_schedule": list(depth.schedule),
        "depformer_low_rank_embeddings": depth.low_rank,
        "depformer_norm": _norm_name(depth.output_norm) if depth.output_norm else None,
    }


def _norm_name(norm: str) -> str:
    return next(theirs for theirs, ours in _NORMS.items() if ours == norm)


def _scale(width: int, lm: LMConfig) -> float:
    scale = width / lm.transformer.dim
    return scale if int(scale * lm.transformer.dim) == width else (width + 0.5) / lm.transformer.dim
