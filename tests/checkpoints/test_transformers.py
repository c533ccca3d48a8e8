"""The configuration files of `transformers`: round trips, published files, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.models import codec_config, lm_config, stt_config

from slipstream.checkpoints.presets import PRESETS
from slipstream.checkpoints.transformers import dump_config, is_transformers, parse_config
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import CodecConfig, FileNames, SamplingConfig, STTConfig, TransformerConfig

# The config.json of transformers for stt-2.6b-en: only sizes that differ from the defaults.
PUBLISHED_2_6B: dict[str, Any] = {
    "model_type": "kyutai_speech_to_text",
    "audio_bos_token_id": 2048,
    "audio_pad_token_id": 69569,
    "bos_token_id": 48000,
    "codebook_vocab_size": 2049,
    "codec_config": {"model_type": "mimi", "sliding_window": 250, "frame_rate": 12.5},
    "ffn_dim": 11264,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "max_position_embeddings": 750,
    "num_attention_heads": 32,
    "num_codebooks": 32,
    "num_hidden_layers": 48,
    "num_key_value_heads": 32,
    "pad_token_id": 3,
    "rms_norm_eps": 1e-08,
    "rope_theta": 100000.0,
    "sliding_window": 375,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 4001,
}
DELAYS = {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0}


def test_a_published_file_is_read() -> None:
    preset = PRESETS["kyutai/stt-2.6b-en"]
    parsed = parse_config(PUBLISHED_2_6B, DELAYS)
    assert (parsed.lm, parsed.codec) == (preset.lm, preset.codec)
    assert (parsed.delay_seconds, parsed.delay_frames, parsed.silence_prefix_seconds) == (2.5, 32, 1.0)
    assert is_transformers(PUBLISHED_2_6B)
    assert not is_transformers({"model_type": "stt"})


@pytest.mark.parametrize(
    "config",
    [
        stt_config(),
        stt_config(pause_heads=0, conditioners=()),
        STTConfig(
            codec=CodecConfig(num_semantic=2, ratios=(8, 6, 10, 2)),
            lm=lm_config(audio_vocab=2048),
            delay_seconds=1.0,
            delay_frames=11,
            silence_prefix_seconds=0.25,
            sampling=SamplingConfig(temperature=0.5, top_k=7),
            model_id={"sig": "x"},
            condition_values={"delay": 1.5},
        ),
    ],
    ids=["odd", "bare", "full"],
)
def test_a_written_configuration_is_parsed_to_the_same_values(config: STTConfig) -> None:
    files = json.loads(json.dumps(dump_config(config, "bfloat16")))
    parsed = parse_config(files["config.json"], files["preprocessor_config.json"])
    assert parsed.files == FileNames(codec="model.safetensors", tokenizer=config.files.tokenizer)
    assert parsed.model_copy(update={"files": config.files}) == config


def test_token_ids_match_the_rows_of_the_embedding() -> None:
    raw = dump_config(stt_config(), "bfloat16")["config.json"]
    V, K, A = 40, stt_config().codec.num_codebooks, 32
    assert raw["bos_token_id"] == V
    assert raw["audio_bos_token_id"] == A
    assert raw["audio_pad_token_id"] == V + 1 + K * (A + 1)
    assert raw["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "2048"}, "config.json: hidden_size must be a whole number above 0, not '2048'"),
        ({"hidden_size": None}, "config.json lacks hidden_size"),
        ({"vocab_size": 1}, "text_card must be a whole number above 0, not 0"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' cannot be run here: only 'silu'"),
        ({"num_key_value_heads": 8}, "num_key_value_heads=8 cannot be run here: only 32"),
        ({"head_dim": 128}, "head_dim=128 is not supported: 32 heads of a model 2048 wide must have head_dim=64"),
        ({"codec_config": {"head_dim": 32}}, "codec_config: head_dim=32 is not supported: 8 heads .* head_dim=64"),
        (
            {"rope_parameters": {"rope_type": "yarn"}},
            "rope_type='yarn' cannot be run here: only 'default'",
        ),
        ({"rope_parameters": {"rope_theta": "1e5"}}, "rope_theta must be a number above 0"),
        ({"codec_config": 3}, "codec_config must be a table"),
        ({"codec_config": {"num_filters": 0}}, "codec_config: num_filters must be a whole number above 0, not 0"),
        (
            {"codec_config": {"upsampling_ratios": [8, "6"]}},
            r"ratios\.1 must be a whole number above 0, not '6'",
        ),
        ({"codec_config": {"use_causal_conv": False}}, "use_causal_conv=False cannot be run here"),
        ({"codec_config": {"upsample_groups": 1}}, "upsample_groups=1 cannot be run here: only 512"),
        ({"slipstream": {"conditioner": {}}}, "unknown key 'conditioner' in .*slipstream; did you mean 'conditioners'"),
        ({"slipstream": {"stt_config": 3}}, "stt_config must be a table, not 3"),
    ],
)
def test_wrong_values_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(PUBLISHED_2_6B | change, DELAYS)


def test_the_context_of_a_known_model_wins_over_a_wrong_sliding_window(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_config(PUBLISHED_2_6B, DELAYS).lm.transformer.context == 375
    assert not caplog.text
    assert parse_config(PUBLISHED_2_6B | {"sliding_window": 3000}, DELAYS).lm.transformer.context == 375
    assert "sliding_window=3000 contradicts kyutai/stt-2.6b-en" in caplog.text
    # A model trained with Slipstream has its own context.
    own = PUBLISHED_2_6B | {"sliding_window": 3000, "slipstream": {"model_id": {"sig": "own"}}}
    assert parse_config(own, DELAYS).lm.transformer.context == 3000


def test_a_delay_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json lacks audio_delay_seconds"):
        parse_config(PUBLISHED_2_6B, {"audio_silence_prefix_seconds": 1.0})
    with pytest.raises(ConfigError, match=r"audio_delay_seconds must be a number, 0 or more, not '2\.5'"):
        parse_config(PUBLISHED_2_6B, {"audio_delay_seconds": "2.5"})


def with_codec(codec: CodecConfig) -> STTConfig:
    return stt_config().model_copy(update={"codec": codec})


PLAIN = codec_config().transformer


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (stt_config(codec="log-mel"), "no model with a log-mel codec"),
        (with_codec(codec_config(ratios=(8, 6, 5, 2))), "by a stride of 4, not 2"),
        (with_codec(codec_config(codebook_size=48)), "a codebook of 48, not a power of two"),
        (with_codec(codec_config(codebook_dim=24)), r"codebook vectors as wide as the codec \(24\)"),
        (
            with_codec(codec_config(transformer=TransformerConfig(**(PLAIN.model_dump() | {"layer_scale": False})))),
            "a codec Transformer other than with LayerNorm, LayerScale",
        ),
    ],
)
def test_models_that_transformers_cannot_represent_are_refused(config: STTConfig, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        dump_config(config, "float32")
