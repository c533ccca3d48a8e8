"""The model section of the Rust server's TOML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream.checkpoints.kyutai_config import _conditioners
from slipstream.checkpoints.schema import Kind, _table, _table_with_constants, _validate, require
from slipstream.errors import ConfigError
from slipstream.model.config import LMConfig

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
