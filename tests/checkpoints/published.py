"""The configurations that are published, and changed copies of them."""

from __future__ import annotations

import copy
from typing import Any

# The config.json of kyutai/stt-2.6b-en.
PUBLISHED_2_6B: dict[str, Any] = {
    "card": 2048,
    "n_q": 32,
    "dep_q": 0,
    "delays": [0] * 33,
    "dim": 2048,
    "text_card": 4000,
    "existing_text_padding_id": 3,
    "num_heads": 32,
    "num_layers": 48,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 375,
    "max_period": 100000.0,
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
    "conditioners": {},
    "cross_attention": False,
    "model_id": {"sig": "dabcc802", "epoch": 50},
    "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 50},
    "stt_config": {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0},
    "model_type": "stt",
    "mimi_name": "mimi-pytorch-e351c8d8@125.safetensors",
    "tokenizer_name": "tokenizer_en_audio_4000.model",
}
# That of kyutai/stt-1b-en_fr-candle, where it differs. Its model_id is left out: nothing depends on it.
PUBLISHED_1B = {
    **{key: value for key, value in PUBLISHED_2_6B.items() if key != "model_id"},
    "text_card": 8000,
    "num_heads": 16,
    "num_layers": 16,
    "context": 750,
    "extra_heads_num_heads": 4,
    "extra_heads_dim": 6,
    "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
    "tokenizer_name": "tokenizer_en_fr_audio_8000.model",
}
# The codec that the `moshi` package builds when a checkpoint names none.
PUBLISHED_MIMI: dict[str, Any] = {
    "sample_rate": 24000,
    "channels": 1,
    "frame_rate": 12.5,
    "seanet": {
        "channels": 1,
        "dimension": 512,
        "causal": True,
        "n_filters": 64,
        "n_residual_layers": 1,
        "activation": "ELU",
        "compress": 2,
        "dilation_base": 2,
        "disable_norm_outer_blocks": 0,
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 3,
        "norm": "none",
        "pad_mode": "constant",
        "ratios": [8, 6, 5, 4],
        "true_skip": True,
    },
    "quantizer": {"dimension": 256, "n_q": 32, "bins": 2048, "input_dimension": 512, "output_dimension": 512},
    "transformer": {
        "d_model": 512,
        "num_heads": 8,
        "num_layers": 8,
        "causal": True,
        "layer_scale": 0.01,
        "context": 250,
        "conv_layout": True,
        "max_period": 10000,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "dim_feedforward": 2048,
        "input_dimension": 512,
        "output_dimensions": [512],
    },
}


def changed(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `raw` with the value at a path such as `seanet.ratios` replaced."""
    raw = copy.deepcopy(raw)
    *tables, key = path.split(".")
    table = raw
    for name in tables:
        table = table[name]
    table[key] = value
    return raw
