"""The language model: reads the audio tokens of a frame and its own last text token, writes the next text token.

Shapes: B slots, K codebooks, D width, V text vocabulary, H pause heads. A step is one position.
Position 0 holds the initial tokens; position t + 1 holds (text_t, audio_t) and yields text_{t+1}.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from slipstream.backends.mlx.layers import Positions, Transformer, make_norm
from slipstream.backends.mlx.state import Ring
from slipstream.model.config import ConditionerConfig, LMConfig


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
        self.transformer = Transformer(config.transformer, step=1)
        self.out_norm = make_norm(config.transformer)
        self.text_linear = nn.Linear(D, config.text_vocab, bias=False)
        if config.pause_heads:
            self.pause_heads = nn.Linear(D, config.pause_heads * config.pause_classes, bias=False)

    @property
    def dtype(self) -> mx.Dtype:
        """The type of all that is not quantised."""
        dtype: mx.Dtype = self.out_norm.weight.dtype
        return dtype

    def init_state(self, batch: int) -> list[Ring]:
        """State of `batch` fresh streams."""
        return self.transformer.init_state(batch, self.dtype)

    def __call__(
        self, text_B: mx.array, audio_BK: mx.array, state: list[Ring], at: Positions, condition_D: mx.array
    ) -> tuple[mx.array, list[Ring]]:
        """Tokens `[B]` and `[B, K]` to the normalised output `[B, D]` that all heads read.

        `condition_D` (see `condition`) is added to every input.
        """
        rows_BK = audio_BK + mx.arange(self.config.num_codebooks) * (self.config.audio_vocab + 1)
        x_BD = self.audio_emb(rows_BK).sum(axis=1) + self.text_emb(text_B) + condition_D
        x_BTD, state = self.transformer(x_BD[:, None], state, at)
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

        Raises `ValueError` for a name or value that is not known.
        """
        unknown = sorted(values.keys() - self.conditioners.keys())
        if unknown:
            known = ", ".join(self.conditioners) or "none"
            raise ValueError(f"unknown condition {', '.join(unknown)}; this model has: {known}")
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
        config = self.config
        if config.kind == "lut":
            if value not in config.possible_values:
                expected = ", ".join(config.possible_values)
                raise ValueError(f"condition {config.name}={value!r}: expected one of {expected}")
            embedded: mx.array = self.embed(mx.array([config.possible_values.index(str(value))]))
            return embedded
        if config.kind == "tensor" or isinstance(value, str):
            raise ValueError(f"condition {config.name}={value!r}: expected a number")
        return sines(value * config.scale_factor, config.dim, config.max_period)


def sines(value: float, dim: int, max_period: float) -> mx.array:
    """Embed a number as cosines then sines `[1, dim]` of `dim / 2` periods from 2 pi to `2 pi max_period`."""
    half = dim // 2
    phase = value / mx.power(max_period, mx.arange(half) / (half - 1))
    return mx.concatenate([mx.cos(phase), mx.sin(phase)])[None]
