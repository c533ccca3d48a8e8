"""The configurations of the published models, by repository id."""

from __future__ import annotations

from slipstream.model.config import CodecConfig, FileNames, LMConfig, SamplingConfig, STTConfig, TransformerConfig

# -------------------------------------------------------------------------------------------------------------- presets


def _published(dim: int, heads: int, layers: int, context: int, text_vocab: int, pause_heads: int) -> LMConfig:
    return LMConfig(
        transformer=TransformerConfig(
            dim=dim,
            num_heads=heads,
            num_layers=layers,
            ffn_dim=5632,  # 2 * 8448 // 3, 8448 = 4.125 * 2048
            context=context,
            max_period=100_000.0,
            norm="rms_norm",
            gated=True,
        ),
        text_vocab=text_vocab,
        audio_vocab=2048,
        num_codebooks=32,
        pause_heads=pause_heads,
    )


def _published_1b(pause_heads: int) -> STTConfig:
    return STTConfig(
        codec=CodecConfig(),
        lm=_published(dim=2048, heads=16, layers=16, context=750, text_vocab=8000, pause_heads=pause_heads),
        delay_seconds=0.5,
        delay_frames=6,
        sampling=SamplingConfig(temperature=0.0, top_k=50),
        files=FileNames(codec="mimi-pytorch-e351c8d8@125.safetensors", tokenizer="tokenizer_en_fr_audio_8000.model"),
    )


SPEECH_MODELS = ("kyutai/tts-1.6b-en_fr", "kyutai/tts-0.75b-en-public")
"""The published models for text to speech."""

PRESETS: dict[str, STTConfig] = {
    # The same model twice; only the second has the pause heads (131 and 135 tensors).
    "kyutai/stt-1b-en_fr": _published_1b(pause_heads=0),
    "kyutai/stt-1b-en_fr-candle": _published_1b(pause_heads=4),
    "kyutai/stt-2.6b-en": STTConfig(
        codec=CodecConfig(),
        lm=_published(dim=2048, heads=32, layers=48, context=375, text_vocab=4000, pause_heads=0),
        delay_seconds=2.5,
        delay_frames=32,
        silence_prefix_seconds=1.0,
        sampling=SamplingConfig(temperature=0.0, top_k=50),
        files=FileNames(codec="mimi-pytorch-e351c8d8@125.safetensors", tokenizer="tokenizer_en_audio_4000.model"),
        model_id={"sig": "dabcc802", "epoch": 50},
    ),
}
