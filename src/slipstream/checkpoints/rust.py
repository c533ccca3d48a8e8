"""The TOML file of Kyutai's Rust server: the model, how it is served, and the accepted keys.

Its weights are those of `kyutai`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from slipstream.checkpoints.kyutai import ConditionerBody
from slipstream.errors import ConfigError
from slipstream.model.config import CodecConfig, LMConfig, SamplingConfig, STTConfig
from slipstream.schema import (
    Count,
    Natural,
    NonNegativeNumber,
    Number,
    PositiveNumber,
    Section,
    parse,
    read_toml,
)


@dataclass(frozen=True, slots=True)
class RustConfig:
    """The parts of a Rust server's configuration that are used here.

    Attributes:
        path: Where the WebSocket listens.
        slots: Number of concurrent streams.
        model: The configuration of the model.
        lm_file: A path, or `hf://owner/repo/file`; so are `codec_file` and `tokenizer_file`.
        keys: The accepted keys, in clear.
        instance_name: For logs and metrics.
        dtype: Type of the LM's weights, as `load_runner` takes it.
    """

    path: str
    slots: int
    model: STTConfig
    lm_file: str
    codec_file: str
    tokenizer_file: str
    keys: tuple[str, ...]
    instance_name: str
    dtype: str = "auto"


def read_rust_config(path: Path) -> RustConfig:
    """Read a configuration of the Rust server with one speech-to-text module.

    Raises `ConfigError` that names the key that is unknown, missing or not supported.
    """
    raw = read_toml(path)
    try:
        return _parse(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


# --------------------------------------------------------------------------------------------------------- schemas


class _Conditioner(ConditionerBody):
    """A conditioner; its parameters are next to its type."""

    type: Literal["ContinuousAttribute", "Lut"]

    @model_validator(mode="after")
    def _lut_has_bins(self) -> _Conditioner:
        if self.type == "Lut" and self.num_bins is None:
            raise ValueError("a Lut lacks n_bins")
        return self

    def canonical(self, name: str) -> dict[str, Any]:
        return self.config(name, "lut" if self.type == "Lut" else "continuous")


class _Transformer(Section):
    # They size caches and parts that a speech-to-text model does not have.
    ignored: ClassVar[frozenset[str]] = frozenset({"use_conv_bias", "conv_kernel_size", "max_seq_len"})
    dim: Count = Field(alias="d_model")
    num_heads: Count
    num_layers: Count
    dim_feedforward: Count
    context: Count
    max_period: PositiveNumber
    causal: Literal[True] = True
    norm_first: Literal[True] = True
    bias_ff: Literal[False] = False
    bias_attn: Literal[False] = False
    use_conv_block: Literal[False] = False
    gating: Literal["silu"] = "silu"
    norm: Literal["RmsNorm"] = "RmsNorm"
    positional_embedding: Literal["Rope"] = "Rope"
    conv_layout: Literal[False] = False
    kv_repeat: Literal[1] = 1
    layer_scale: None = None
    cross_attention: None = None
    shared_cross_attn: Literal[False] = False


class _ExtraHeads(Section):
    num_heads: Natural = 0
    dim: Count = 6


class _Model(Section):
    audio_vocab_size: Count
    text_in_vocab_size: Count
    text_out_vocab_size: Count
    audio_codebooks: Count
    transformer: _Transformer
    depformer: Any = None
    extra_heads: _ExtraHeads = _ExtraHeads()
    conditioners: dict[str, _Conditioner] = Field({})

    @model_validator(mode="after")
    def _vocabularies_fit(self) -> _Model:
        rows, tokens = self.text_in_vocab_size, self.text_out_vocab_size
        if rows != tokens + 1:
            raise ValueError(
                f"text_in_vocab_size={rows} must be text_out_vocab_size + 1 = {tokens + 1}: one more row, for the "
                "initial token"
            )
        if self.audio_vocab_size < 2:
            raise ValueError("audio_vocab_size=1 leaves no audio token: it counts the initial token too")
        if self.depformer is not None:
            raise ValueError("depformer is not supported: a speech-to-text model has none")
        return self


class _Module(Section):
    type: Literal["BatchedAsr", "Asr"]
    path: str
    lm_model_file: str
    text_tokenizer_file: str
    audio_tokenizer_file: str
    asr_delay_in_tokens: Natural
    model: dict[str, Any]
    log_frequency_s: Number | None = None  # how often the Rust server writes tokens to log_dir; nothing is logged here
    conditioning_delay: NonNegativeNumber | None = None
    conditioning_learnt_padding: bool = False
    temperature: NonNegativeNumber = 0.0
    batch_size: Count | None = None
    dtype_override: Literal["bf16", "f32", "f16"] | None = None

    @model_validator(mode="after")
    def _keys_fit(self) -> _Module:
        if self.type == "BatchedAsr" and self.batch_size is None:
            raise ValueError("lacks batch_size, which type BatchedAsr needs")
        if not self.path.startswith("/"):
            raise ValueError(f"path={self.path!r} must begin with '/'")
        if self.conditioning_delay is not None and self.conditioning_learnt_padding:
            raise ValueError("conditioning_delay and conditioning_learnt_padding exclude each other")
        return self


class _File(Section):
    static_dir: str  # the folder of the Rust server's page; Slipstream has its own
    log_dir: str  # Slipstream logs to standard error
    instance_name: str
    authorized_ids: list[str]
    modules: dict[str, Any]


# ------------------------------------------------------------------------------------------------- to our configuration

_SERVED = ("BatchedAsr", "Asr")
_DTYPES = {"bf16": "bfloat16", "f32": "float32", "f16": "auto", None: "auto"}  # no backend here has float16


def parse_rust_model(table: Mapping[str, Any], where: str = "model") -> LMConfig:
    """Read `[modules.asr.model]` of the Rust server's TOML. Raises `ConfigError` that names the key."""
    model = parse(_Model, table, where, f"{where}.")
    transformer, heads = model.transformer, model.extra_heads
    dim, feed_forward = transformer.dim, transformer.dim_feedforward
    fields = {
        "transformer": {
            **transformer.model_dump(include={"dim", "num_heads", "num_layers", "context", "max_period"}),
            "ffn_dim": 11 * dim // 4 if feed_forward == 4 * dim else 2 * feed_forward // 3,
            "norm": "rms_norm",
            "gated": True,
        },
        "text_vocab": model.text_out_vocab_size,
        "audio_vocab": model.audio_vocab_size - 1,
        "num_codebooks": model.audio_codebooks,
        "pause_heads": heads.num_heads,
        "pause_classes": heads.dim,
        "conditioners": [conditioner.canonical(name) for name, conditioner in model.conditioners.items()],
    }
    return parse(LMConfig, fields, where, f"{where}.")


def _parse(raw: Mapping[str, Any]) -> RustConfig:
    top = parse(_File, raw, "the file")
    for name, module in top.modules.items():
        kind = module.get("type") if isinstance(module, dict) else None
        if kind not in _SERVED:
            raise ConfigError(f"modules.{name}: type {kind!r} is not supported, only {' and '.join(_SERVED)}")
    if len(top.modules) != 1:
        raise ConfigError(f"{len(top.modules)} modules: expected one, of type {' or '.join(_SERVED)}")
    [(name, table)] = top.modules.items()
    where = f"modules.{name}"
    module = parse(_Module, table, where, f"{where}.")
    return RustConfig(
        path=module.path,
        slots=module.batch_size or 1,
        model=_model(module, parse_rust_model(module.model, f"{where}.model"), where),
        lm_file=_expand(module.lm_model_file),
        codec_file=_expand(module.audio_tokenizer_file),
        tokenizer_file=_expand(module.text_tokenizer_file),
        keys=tuple(top.authorized_ids),
        instance_name=_expand(top.instance_name),
        dtype=_DTYPES[module.dtype_override],
    )


def _model(module: _Module, lm: LMConfig, where: str) -> STTConfig:
    delay = module.conditioning_delay
    if lm.conditioners and delay is None and not module.conditioning_learnt_padding:
        raise ConfigError(f"{where} lacks conditioning_delay or conditioning_learnt_padding, which its model needs")
    codec = CodecConfig()
    delay_frames = module.asr_delay_in_tokens
    if delay is not None:
        delay_frames = int(delay * codec.frame_rate) + 1  # as the reference counts it
    return STTConfig(
        codec=codec,
        lm=lm,
        delay_seconds=delay_frames / codec.frame_rate if delay is None else delay,
        delay_frames=delay_frames,
        sampling=SamplingConfig(temperature=module.temperature),
        # The reference passes the negative delay to its conditioner.
        condition_values={} if delay is None else {"delay": -delay},
    )


def _expand(text: str) -> str:
    """Expand environment variables as the reference does: `$NAME`, empty if it is not set; not in `hf://` paths."""
    if text.startswith("hf://"):
        if len(text.split("/")) < 5:
            raise ConfigError(f"{text!r}: expected hf://owner/repo/file")
        return text
    return re.sub(r"\$([A-Za-z_][A-Za-z0-9_]*)", lambda match: os.environ.get(match[1], ""), text)
