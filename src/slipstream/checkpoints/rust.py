"""The Rust server's TOML: which model it names, how it is served, and who may connect."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipstream.checkpoints.rust_model import parse_rust_model
from slipstream.checkpoints.schema import check_keys, read_toml
from slipstream.errors import ConfigError
from slipstream.model.config import CodecConfig, LMConfig, SamplingConfig, STTConfig


@dataclass(frozen=True, slots=True)
class RustConfig:
    """What of the Rust server's configuration is served here.

    `path`: where the WebSocket listens. `slots`: streams at once. `lm_file`, `codec_file`, `tokenizer_file`: paths,
    or `hf://owner/repo/file`. `keys`: those that may connect, in clear. `instance_name`: for logs and metrics.
    `dtype`: of the LM's weights, as `load_runner` takes it.
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
    """Read a configuration of the Rust server that has one module for speech to text.

    Raises `ConfigError` that names the key for one that is unknown, missing, or asks for what is not served here.
    """
    raw = read_toml(path)
    try:
        return _parse(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


_SERVED = ("BatchedAsr", "Asr")
_TOP_KEYS: dict[str, type | tuple[type, ...]] = {
    "static_dir": str,  # a folder of their page; ours is in the package
    "log_dir": str,  # logs go to standard error
    "instance_name": str,
    "authorized_ids": list,
    "modules": dict,
}
_MODULE_KEYS: dict[str, type | tuple[type, ...]] = {
    "type": str,
    "path": str,
    "lm_model_file": str,
    "text_tokenizer_file": str,
    "audio_tokenizer_file": str,
    "asr_delay_in_tokens": int,
    "model": dict,
}
_OPTIONAL_MODULE_KEYS: dict[str, type | tuple[type, ...]] = {
    "log_frequency_s": (int, float),  # how often they write tokens to log_dir; no audio or text is logged here
    "conditioning_delay": (int, float),
    "conditioning_learnt_padding": bool,
    "temperature": (int, float),
    "batch_size": int,
    "dtype_override": str,
}
_DTYPES = {"bf16": "bfloat16", "f32": "float32", "f16": "auto"}  # no backend here has float16


def _parse(raw: Mapping[str, Any]) -> RustConfig:
    top = _table(raw, _TOP_KEYS, {}, "the file")
    name, module = _speech_module(top["modules"])
    where = f"modules.{name}"
    module = _table(module, _MODULE_KEYS, _OPTIONAL_MODULE_KEYS, where)
    if not all(isinstance(key, str) for key in top["authorized_ids"]):
        raise ConfigError("authorized_ids is a list of strings")
    if module["type"] == "BatchedAsr" and "batch_size" not in module:
        raise ConfigError(f"{where} lacks batch_size, which type BatchedAsr needs")
    slots = module.get("batch_size", 1)
    if slots < 1:
        raise ConfigError(f"{where}.batch_size={slots}: there must be at least one")
    if not module["path"].startswith("/"):
        raise ConfigError(f"{where}.path={module['path']!r} must begin with '/'")
    dtype = module.get("dtype_override")
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError(f"{where}.dtype_override={dtype!r}: expected one of {', '.join(_DTYPES)}")
    return RustConfig(
        path=module["path"],
        slots=slots,
        model=_model(module, parse_rust_model(module["model"]), where),
        lm_file=_expand(module["lm_model_file"]),
        codec_file=_expand(module["audio_tokenizer_file"]),
        tokenizer_file=_expand(module["text_tokenizer_file"]),
        keys=tuple(top["authorized_ids"]),
        instance_name=_expand(top["instance_name"]),
        dtype=_DTYPES[dtype] if dtype else "auto",
    )


def _speech_module(modules: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    for name, module in modules.items():
        kind = module.get("type") if isinstance(module, dict) else None
        if kind not in _SERVED:
            raise ConfigError(f"modules.{name}: type {kind!r} is not served here, only {' and '.join(_SERVED)}")
    if len(modules) != 1:
        raise ConfigError(f"{len(modules)} modules: expected one, of type {' or '.join(_SERVED)}")
    return next(iter(modules.items()))


def _model(module: Mapping[str, Any], lm: LMConfig, where: str) -> STTConfig:
    delay = module.get("conditioning_delay")
    learnt_padding = module.get("conditioning_learnt_padding", False)
    if delay is not None and learnt_padding:
        raise ConfigError(f"{where}: conditioning_delay and conditioning_learnt_padding exclude each other")
    if lm.conditioners and delay is None and not learnt_padding:
        raise ConfigError(f"{where} lacks conditioning_delay or conditioning_learnt_padding, which its model needs")
    codec = CodecConfig()
    delay_frames = module["asr_delay_in_tokens"]
    if delay is not None:
        delay_frames = int(delay * codec.frame_rate) + 1  # as the reference counts it
    if delay_frames < 0:
        raise ConfigError(f"{where}: a delay of {delay_frames} frames is negative")
    return STTConfig(
        codec=codec,
        lm=lm,
        delay_seconds=delay_frames / codec.frame_rate if delay is None else float(delay),
        delay_frames=delay_frames,
        sampling=SamplingConfig(temperature=float(module.get("temperature", 0.0))),
        # The reference asks its conditioner for minus the delay.
        condition_values={} if delay is None else {"delay": -float(delay)},
    )


def _expand(text: str) -> str:
    """Environment variables as the reference expands them: `$NAME`, empty where it is not set; not in `hf://` paths."""
    if text.startswith("hf://"):
        if len(text.split("/")) < 5:
            raise ConfigError(f"{text!r}: expected hf://owner/repo/file")
        return text
    return re.sub(r"\$([A-Za-z_][A-Za-z0-9_]*)", lambda match: os.environ.get(match[1], ""), text)


def _table(
    raw: Mapping[str, Any],
    required: Mapping[str, type | tuple[type, ...]],
    optional: Mapping[str, type | tuple[type, ...]],
    where: str,
) -> Mapping[str, Any]:
    kinds = {**required, **optional}
    check_keys(raw, kinds, where)
    missing = [key for key in required if key not in raw]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    for key, value in raw.items():
        if not isinstance(value, kinds[key]) or (isinstance(value, bool) and kinds[key] is not bool):
            raise ConfigError(f"{where}: {key}={value!r} is of the wrong type")
    return raw
