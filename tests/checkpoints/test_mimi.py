"""The configuration of a codec: errors that name its keys."""

from __future__ import annotations

from typing import Any

import pytest
from tests.checkpoints.published import PUBLISHED_MIMI, changed
from tests.models import codec_config, lm_config, mel_codec_config, stt_config, whisper_codec_config, with_decoder

from slipstream.checkpoints.mimi import dump_codec, parse_codec
from slipstream.checkpoints.transformers import dump_config
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import (
    CodecConfig,
    STTConfig,
    WhisperConfig,
)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("quantizer", None, "the codec's config lacks quantizer"),
        ("seanet.n_filter", 1, "unknown key 'n_filter' in seanet; did you mean 'n_filters'"),
        ("seanet.n_filters", "64", "seanet: n_filters must be a whole number above 0, not '64'"),
        ("seanet.ratios", 8, "seanet: ratios must be a list, not 8"),
        ("seanet.ratios", ["8"], "seanet.ratios.0 must be a whole number, not '8'"),
        ("seanet.ratios", [7, 6, 5, 4], "does not divide a frame"),
        ("seanet.pad_mode", "reflect", "only 'constant' is supported"),
        ("seanet.dimension", 256, r"seanet.dimension=256 cannot be run here: only 512 is supported, the width d_model"),
        ("transformer.d_model", None, "transformer lacks d_model"),
        ("transformer.max_period", "1e4", "transformer: max_period must be a number above 0"),
        ("transformer.gating", "silu", "only 'none' is supported"),
        ("quantizer.bin", 3, "unknown key 'bin' in quantizer; did you mean 'bins'"),
        ("quantizer.n_q", 0, "quantizer: n_q must be a whole number above 0, not 0"),
        ("quantizer.n_q", 1, "num_codebooks=1 must be more than num_semantic=1"),
        ("frame_rate", 12.51, "is not a whole number"),
        ("channels", 2, "only 1 is supported"),
    ],
)
def test_an_error_in_a_codec_is_named(key: str, value: Any, message: str) -> None:
    raw = changed(PUBLISHED_MIMI, key, value)
    with pytest.raises(ConfigError, match=message):
        parse_codec(raw)


def test_a_whisper_encoder_sets_width_rate_and_delay() -> None:
    codec = CodecConfig(whisper=WhisperConfig())
    assert (codec.dim, codec.hop_samples, codec.stride, codec.has_decoder) == (512, 480, 4, False)
    assert codec.delay_frames == 6.0
    assert CodecConfig().delay_frames == 0.0
    assert "ratios" not in dump_codec(codec)
    assert parse_codec(dump_codec(codec)) == codec
    stt_config(codec="whisper")
    with pytest.raises(ValueError, match="delay_frames=6 is less than the encoder's own delay of 12 frames"):
        STTConfig(
            codec=codec_config(whisper=WhisperConfig(lookahead=8)), lm=lm_config(), delay_seconds=0.5, delay_frames=6
        )


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"whisper": {"dim": 512, "num_heads": 7}}, "dim=512 must be a multiple of num_heads=7"),
        ({"whisper": {"lookahed": 4}}, "lookahed"),
        ({"whisper": {}, "mel": {}}, "mel and whisper exclude each other"),
        ({"decoder": {}}, "decoder is for a codec with mel or whisper"),
        ({"whisper": {}, "decoder": {"ratios": [7, 5]}}, r"ratios \(7, 5\) do not make a divisor of a frame of 1920"),
        ({"whisper": {}, "sample_rate": 8000}, "sample rate of at least 16000"),
    ],
)
def test_an_error_in_a_whisper_encoder_is_named(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_codec(raw)


def test_the_decoder_of_a_whisper_encoder_has_its_own_shape() -> None:
    codec = with_decoder(whisper_codec_config(), dim=36)
    assert (codec.has_decoder, codec.dim, codec.output_dim, codec.stride, codec.decoder_stride) == (True, 24, 36, 4, 2)
    assert "decoder" not in dump_codec(whisper_codec_config())
    assert parse_codec(dump_codec(codec)) == codec
    with pytest.raises(CheckpointError, match="a codec with a Whisper encoder"):
        dump_config(stt_config(codec="whisper").model_copy(update={"codec": codec}), "float32")


def test_own_form_of_a_codec_is_checked_too() -> None:
    dumped = dump_codec(mel_codec_config())
    assert parse_codec(dumped) == mel_codec_config()
    with pytest.raises(ConfigError, match="unknown key 'num_filter' in the codec's config; did you mean 'num_filters'"):
        parse_codec({**dumped, "num_filter": 3})
    with pytest.raises(ConfigError, match="num_filters must be a whole number, not '3'"):
        parse_codec({**dumped, "num_filters": "3"})
