"""The language model: reads the audio tokens of a frame and its own last text token, writes the next text token.

Shapes: B slots, K codebooks, D width, V text vocabulary, H pause heads. A step is one position.
Position 0 holds the initial tokens; position t + 1 holds (text_t, audio_t) and yields text_{t+1}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, cast

import mlx.core as mx
import mlx.nn as nn

from slipstream.backends.mlx.decoder import DecoderState, FramePositions, WhisperDecoder
from slipstream.backends.mlx.layers import Positions, Transformer, make_norm
from slipstream.backends.mlx.state import Ring
from slipstream.model.config import ConditionerConfig, LMConfig
from slipstream.model.numerics import check_conditions, condition_row, condition_sines

LMState: TypeAlias = list[Ring] | DecoderState
LMPositions: TypeAlias = Positions | FramePositions


class LM(nn.Module):
    """A decoder-only Transformer over one text stream and `num_codebooks` audio streams."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        D = config.transformer.dim
        self.config = config
        self.text_emb = nn.Embedding(config.text_vocab + 1, D)
        # One table after the other, the first of each codebook at a multiple of their length.
        self.audio_emb = nn.Embedding(config.num_codebooks * (config.audio_vocab + 1), D)
        self.conditioners = {c.name: Conditioner(c, D) for c in config.conditioners}
        self.transformer = WhisperDecoder(config) if config.whisper else Transformer(config.transformer, step=1)
        self.out_norm = make_norm(config.transformer)
        self.text_linear = nn.Linear(D, config.text_vocab, bias=False)
        if config.pause_heads:
            self.pause_heads = nn.Linear(D, config.pause_heads * config.pause_classes, bias=False)

    @property
    def dtype(self) -> mx.Dtype:
        """The type of all that is not quantised."""
        dtype: mx.Dtype = self.out_norm.weight.dtype
        return dtype

    def init_state(self, batch: int, language: int = 0) -> LMState:
        """State of `batch` fresh streams in a language, by its number; see `LMConfig.language_number`."""
        if isinstance(self.transformer, WhisperDecoder):
            return self.transformer.init_state(batch, self.dtype, language)
        return self.transformer.init_state(batch, self.dtype)

    def __call__(
        self, text_B: mx.array, audio_BK: mx.array, state: LMState, at: LMPositions, condition_BD: mx.array
    ) -> tuple[mx.array, LMState]:
        """Tokens `[B]` and `[B, K]` to the normalised output `[B, D]` that all heads read.

        `condition_BD` (`[B, D]` or `[D]`, see `condition`) is added to every input.
        """
        rows_BK = audio_BK + mx.arange(self.config.num_codebooks) * (self.config.audio_vocab + 1)
        audio_BD = self.audio_emb(rows_BK).sum(axis=1)
        if isinstance(self.transformer, WhisperDecoder):
            held, frame = cast(DecoderState, state), cast(FramePositions, at)
            x_BTD, state = self.transformer(text_B, self.text_emb, audio_BD[:, None], held, frame)
        else:
            x_BD = audio_BD + self.text_emb(text_B) + condition_BD
            x_BTD, state = self.transformer(x_BD[:, None], cast(list[Ring], state), cast(Positions, at))
        return self.out_norm(x_BTD[:, 0]), state

    def text_logits(self, hidden_BD: mx.array) -> mx.array:
        """Scores of the next text token, `[B, V]`."""
        logits: mx.array = self.text_linear(hidden_BD)
        return logits

    def pause_logits(self, hidden_BD: mx.array) -> mx.array:
        """Scores of the pause classes, `[B, H, classes]`; H is 0 for a model without pause heads."""
        shape = (hidden_BD.shape[0], self.config.pause_heads, self.config.pause_classes)
        if not self.config.pause_heads:
            return mx.zeros(shape, self.dtype)
        logits: mx.array = self.pause_heads(hidden_BD).reshape(shape)
        return logits

    def condition(self, values: Mapping[str, float | str]) -> mx.array:
        """The sum of all conditions, `[D]`; a conditioner without a value gives its learnt padding.

        Raises `ConfigError` for an unknown name or value.
        """
        check_conditions(self.config, values)
        total = mx.zeros(self.config.transformer.dim, self.dtype)
        for name, conditioner in self.conditioners.items():
            total = total + conditioner(values.get(name))
        return total


class Conditioner(nn.Module):
    """One condition as a vector `[D]`, added to every input of the LM."""

    def __init__(self, config: ConditionerConfig, output_dim: int) -> None:
        super().__init__()
        self.config = config
        if config.kind == "lut":
            self.embed = nn.Embedding(config.num_bins + 1, config.dim)
        self.output_proj = nn.Linear(config.dim, output_dim, bias=False)
        self.learnt_padding = mx.zeros(output_dim)

    def __call__(self, value: float | str | None) -> mx.array:
        if value is None:
            return self.learnt_padding
        projected: mx.array = self.output_proj(self._embed(value).astype(self.learnt_padding.dtype))[0]
        return projected

    def _embed(self, value: float | str) -> mx.array:
        if self.config.kind == "lut":
            embedded: mx.array = self.embed(mx.array([condition_row(self.config, value)]))
            return embedded
        return mx.array(condition_sines(self.config, value))[None]
