"""Models that benchmarks measure: their shapes, and random weights. The time of a step does not depend on weights."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from slipstream.checkpoints.presets import PRESETS
from slipstream.model.config import CodecConfig, LMConfig, STTConfig, TransformerConfig, WhisperConfig
from slipstream.model.names import Shapes


def language_model(dim: int, heads: int, layers: int, ffn_dim: int, context: int, text_vocab: int) -> LMConfig:
    """An LM of the published kind that reads 8 codebooks of 512 tokens."""
    return LMConfig(
        transformer=TransformerConfig(
            dim=dim,
            num_heads=heads,
            num_layers=layers,
            ffn_dim=ffn_dim,
            context=context,
            max_period=100_000.0,
            norm="rms_norm",
            gated=True,
        ),
        text_vocab=text_vocab,
        audio_vocab=512,
        num_codebooks=8,
        pause_heads=4,
    )


MODELS = {
    **PRESETS,
    # An encoder of the size of Whisper base, and an LM of 15 million parameters.
    "whisper-base": STTConfig(
        codec=CodecConfig(whisper=WhisperConfig(), codebook_size=512, num_codebooks=8),
        lm=language_model(dim=384, heads=6, layers=7, ffn_dim=1024, context=250, text_vocab=2000),
        delay_seconds=1.28,
        delay_frames=16,
    ),
}

SMALL = STTConfig(
    codec=CodecConfig(
        num_filters=16,
        transformer=CodecConfig().transformer.model_copy(
            update={"dim": 128, "num_heads": 4, "num_layers": 2, "ffn_dim": 512, "context": 100}
        ),
        codebook_dim=64,
        codebook_size=512,
        num_codebooks=8,
    ),
    lm=language_model(dim=256, heads=4, layers=4, ffn_dim=704, context=125, text_vocab=1000),
    delay_seconds=0.5,
    delay_frames=6,
)


class RandomWeights(Mapping[str, np.ndarray]):
    """Random tensors, made each time one is read: a model of billions is never in memory as a whole."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) == 1:
            return rng.uniform(0.8, 1.2, shape).astype(np.float32)
        weight = rng.standard_normal(shape, np.float32)
        weight *= np.prod(shape[1:]) ** -0.5 if "emb" not in name else 1
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)
