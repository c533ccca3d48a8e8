"""Small models with random weights, shared by the tests of every backend."""

from __future__ import annotations

import numpy as np

from slipstream.model.config import (
    CodecConfig,
    ConditionerConfig,
    LMConfig,
    MelConfig,
    SamplingConfig,
    STTConfig,
    TransformerConfig,
    WhisperConfig,
)
from slipstream.model.names import Shapes, codec_shapes, lm_shapes

Arrays = dict[str, np.ndarray]


def codec_config(**changes: object) -> CodecConfig:
    """A narrow Mimi with every part of the true one; its ring wraps after six frames."""
    fields: dict[str, object] = {
        "num_filters": 4,
        "transformer": TransformerConfig(
            dim=24,
            num_heads=3,
            num_layers=2,
            ffn_dim=40,
            context=11,
            max_period=10_000.0,
            norm="layer_norm",
            gated=False,
            layer_scale=True,
        ),
        "codebook_dim": 10,
        "codebook_size": 32,
        "num_codebooks": 6,
    }
    return CodecConfig(**(fields | changes))


def mel_codec_config() -> CodecConfig:
    """The log-mel front end on the same codec modules."""
    return codec_config(mel=MelConfig(n_mels=20), ratios=(2, 2))


def whisper_codec_config(lookahead: int = 4) -> CodecConfig:
    """A narrow Whisper encoder; its rings wrap after five frames, its output is three frames late."""
    whisper = WhisperConfig(n_mels=20, dim=24, num_heads=3, num_layers=3, ffn_dim=40, context=11, lookahead=lookahead)
    return CodecConfig(whisper=whisper, codebook_dim=10, codebook_size=32, num_codebooks=6)


def lm_config(**changes: object) -> LMConfig:
    """An odd LM: three heads, five codebooks, context 7, a width that is no power of two, pause heads, a condition."""
    fields: dict[str, object] = {
        "transformer": TransformerConfig(
            dim=42,
            num_heads=3,
            num_layers=2,
            ffn_dim=50,
            context=7,
            max_period=100_000.0,
            norm="rms_norm",
            gated=True,
        ),
        "text_vocab": 40,
        "audio_vocab": 32,
        "num_codebooks": 5,
        "pause_heads": 4,
        "conditioners": (
            ConditionerConfig(name="delay", kind="continuous", dim=8, scale_factor=10.0, max_period=100.0),
        ),
    }
    return LMConfig(**(fields | changes))


CODECS = {"waveform": codec_config(), "log-mel": mel_codec_config(), "whisper": whisper_codec_config()}
"""A small codec with each kind of encoder."""


def stt_config(*, codec: str = "waveform", **lm_changes: object) -> STTConfig:
    return STTConfig(
        codec=CODECS[codec],
        lm=lm_config(**lm_changes),
        delay_seconds=0.5,
        delay_frames=6,
        sampling=SamplingConfig(),
    )


def random_weights(shapes: Shapes, seed: int = 0) -> Arrays:
    """Weights of a size that keeps every layer's output near its input's, so that nothing dies or explodes."""
    rng = np.random.default_rng(seed)
    weights: Arrays = {}
    for name, shape in shapes.items():
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        if name.endswith("cluster_usage"):
            value = rng.uniform(0.5, 2.0, shape)
        elif name.endswith(("embedding_sum", "_emb.weight", "learnt_padding")):
            value = rng.standard_normal(shape)
        elif len(shape) == 1 and name.endswith("weight"):
            value = 1 + 0.1 * rng.standard_normal(shape)  # a norm
        elif name.endswith(("scale1", "scale2")):
            value = rng.uniform(0.2, 0.8, shape)
        elif name.endswith("bias"):
            value = 0.1 * rng.standard_normal(shape)
        elif name.startswith(("text_linear", "pause_heads")):
            value = 3 * rng.standard_normal(shape) / np.sqrt(shape[-1])  # tokens that vary
        else:
            value = 1.5 * rng.standard_normal(shape) / np.sqrt(fan_in)
        weights[name] = value.astype(np.float32)
    return weights


def random_model(config: STTConfig, seed: int = 0) -> tuple[Arrays, Arrays]:
    """The LM's and the codec's canonical weights."""
    return random_weights(lm_shapes(config.lm), seed), random_weights(codec_shapes(config.codec), seed + 1)


def noise_and_tones(seconds: float, seed: int = 0, sample_rate: int = 24_000) -> np.ndarray:
    """Audio with structure, float32 `[S]` within -1 to 1: gliding tones that come and go over noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    audio = 0.05 * rng.standard_normal(time.shape)
    for _ in range(3):
        frequency = rng.uniform(100, 3000) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.2, 2) * time))
        envelope = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.3, 3) * time + rng.uniform(0, 6))
        audio += 0.25 * envelope * np.sin(2 * np.pi * np.cumsum(frequency) / sample_rate)
    return np.clip(audio, -1, 1).astype(np.float32)
