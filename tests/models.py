"""Small models with random weights, under the names that the tests use."""

from slipstream.testing import (
    CODECS,
    codec_config,
    lm_config,
    mel_codec_config,
    noise_and_tones,
    random_model,
    random_weights,
    whisper_codec_config,
)
from slipstream.testing import small_config as stt_config

__all__ = [
    "CODECS",
    "codec_config",
    "lm_config",
    "mel_codec_config",
    "noise_and_tones",
    "random_model",
    "random_weights",
    "stt_config",
    "whisper_codec_config",
]
