"""Small text-to-speech models with random weights, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.fakes import tiny_tokenizer, tokenizer_path
from tests.models import with_decoder

from slipstream.checkpoints.speech import SpeechCheckpoint, save_speech
from slipstream.checkpoints.tensors import write_tensors
from slipstream.model.config import CodecConfig, ConditionerConfig, SamplingConfig
from slipstream.model.speech import Voice
from slipstream.model.tts_config import SpeechSampling, TTSConfig
from slipstream.testing import Arrays, random_model, small_tts_config, tts_lm_config, whisper_codec_config

DRAWN = SpeechSampling(text=SamplingConfig(temperature=0.6), audio=SamplingConfig(temperature=0.6, top_k=8))


def continuing_config() -> TTSConfig:
    """A model that continues a recording, with real guidance."""
    transformer = tts_lm_config().transformer.model_copy(update={"cross_attention": False})
    control = ConditionerConfig(name="control", kind="lut", dim=42, num_bins=1, possible_values=("ok",))
    return small_tts_config(transformer=transformer, conditioners=(control,), cross_position_scale=0.0, text_outputs=5)


def late_codec(lookahead: int = 4) -> CodecConfig:
    """A codec with Whisper's encoder and a decoder: tokens are three frames late, or 1.5 with a look-ahead of 2."""
    return with_decoder(whisper_codec_config(lookahead).model_copy(update={"num_codebooks": 4}))


def speaking_model(config: TTSConfig, seed: int = 5) -> tuple[Arrays, Arrays]:
    """Weights with which words begin often, and pads are common."""
    lm, codec = random_model(config, seed)
    lm["text_linear.weight"][[0, 3]] *= 3
    return lm, codec


def make_runner(config: TTSConfig | None = None, slots: int = 1, **options: object):
    """A runner of a small model."""
    from slipstream.backends.torch.speech import TorchSpeechRunner
    from slipstream.nn.build import build_codec, build_lm

    config = config or small_tts_config()
    lm, codec = speaking_model(config)
    options = {"voice_frames": 6, "sampling": DRAWN, **options}
    return TorchSpeechRunner(config, build_codec(config.codec, codec), build_lm(config.lm, lm), slots=slots, **options)


def voice(seed: int, config: TTSConfig | None = None) -> Voice:
    """A voice for a small model."""
    rng = np.random.default_rng(seed)
    if config is None or config.speakers_by_condition:
        return Voice(f"voice {seed}", embeddings=(rng.standard_normal((8, 6)).astype(np.float32),))
    return Voice(f"voice {seed}", prefix=rng.integers(0, 32, (4, 5 + seed)))


def save_model(folder: Path, config: TTSConfig | None = None) -> Path:
    """A checkpoint in Kyutai's format, and the voices `ann` and `bob` next to it."""
    config = config or small_tts_config()
    save_speech(SpeechCheckpoint(config, *speaking_model(config), tokenizer_path()), folder)
    for seed, name in enumerate(("ann", "bob")):
        embedding = voice(seed).embeddings[0]
        write_tensors(folder / f"{name}.5117e570@1.safetensors", {"speaker_wavs": embedding[None]})
    return folder


__all__ = ["continuing_config", "late_codec", "make_runner", "save_model", "speaking_model", "tiny_tokenizer", "voice"]
