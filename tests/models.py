"""Small models with random weights, under the names that the tests use."""

from __future__ import annotations

from slipstream.bundle import ModelBundle
from slipstream.checkpoints.checkpoint import Checkpoint
from slipstream.checkpoints.sources import Ref
from slipstream.model.config import CodecConfig, SEANetConfig
from slipstream.testing import (
    CODECS,
    codec_config,
    decoder_lm_config,
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
    "decoder_lm_config",
    "lm_config",
    "load_checkpoint",
    "mel_codec_config",
    "noise_and_tones",
    "random_model",
    "random_weights",
    "stt_config",
    "whisper_codec_config",
    "with_decoder",
]


def with_decoder(config: CodecConfig, *, dim: int = 24, **changes: object) -> CodecConfig:
    """Return the codec with a decoder whose frames have two positions. Its ring wraps after six frames.

    Args:
        config: A codec with a log-mel front end.
        dim: The width of the decoder's Transformer.
        changes: Other fields of `SEANetConfig`.
    """
    transformer = codec_config().transformer.model_copy(update={"dim": dim})
    shape = SEANetConfig.model_validate({"num_filters": 4, "transformer": transformer, **changes})
    return CodecConfig.model_validate({**dict(config), "decoder": shape})


def load_checkpoint(ref: Ref, *, keep_quantized: bool = False, **origin: Ref) -> Checkpoint:
    """Read the tensors of a model of any layout."""
    return ModelBundle.resolve(ref, **origin).checkpoint(keep_quantized=keep_quantized)
