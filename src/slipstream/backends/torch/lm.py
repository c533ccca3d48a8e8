"""The language model: reads the audio tokens of a frame and its own last text token, writes the next text token.

Shapes: B slots, T positions, K codebooks, D width, V text vocabulary, H pause heads.
Position 0 holds the initial tokens; position t + 1 holds (text_t, audio_t) and yields text_{t+1}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slipstream.backends.torch.layers import Transformer, make_norm
from slipstream.backends.torch.ring import RingFormat
from slipstream.backends.torch.state import State
from slipstream.model.config import ConditionerConfig, LMConfig
from slipstream.model.numerics import NO_TOKEN, check_conditions, condition_number, condition_periods, condition_row


class LM(nn.Module):
    """A decoder-only Transformer over one text stream and `num_codebooks` audio streams."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        D = config.transformer.dim
        self.config = config
        self.text_emb = TokenEmbedding(config.text_vocab + 1, D)
        self.audio_emb = AudioEmbedding(config.num_codebooks, config.audio_vocab + 1, D)
        self.conditioners = nn.ModuleDict({c.name: Conditioner(c, D) for c in config.conditioners})
        self.transformer = Transformer(config.transformer)
        self.out_norm = make_norm(config.transformer)
        self.text_linear = nn.Linear(D, config.text_vocab, bias=False)
        self.pause_heads = PauseHeads(config.pause_heads, config.pause_classes, D) if config.pause_heads else None

    def init_state(self, batch: int, max_step: int = 1, rings: RingFormat | None = None) -> State:
        """State of `batch` fresh streams that advance by at most `max_step` positions at a time."""
        return self.transformer.init_state(batch, max_step, rings)

    def forward(
        self, text_BT: Tensor, audio_BKT: Tensor, state: State | None = None, condition_BD: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Tokens `[B, T]` and `[B, K, T]` to the normalised output `[B, T, D]` that all heads read.

        `condition_BD` (`[B, D]` or `[1, D]`, see `condition`) is added to every input.
        """
        x_BTD = self.audio_emb(audio_BKT) + self.text_emb(text_BT)
        if condition_BD is not None:
            x_BTD = x_BTD + condition_BD[:, None].to(x_BTD)
        x_BTD, state = self.transformer(x_BTD, state)
        return self.out_norm(x_BTD), state

    def text_logits(self, hidden_BTD: Tensor) -> Tensor:
        """Scores of the next text token, `[B, T, V]`."""
        logits: Tensor = self.text_linear(hidden_BTD)
        return logits

    def pause_logits(self, hidden_BTD: Tensor) -> Tensor:
        """Scores of the pause classes, `[B, T, H, classes]`; H is 0 for a model without pause heads."""
        if self.pause_heads is None:
            return hidden_BTD.new_zeros(*hidden_BTD.shape[:2], 0, self.config.pause_classes)
        logits: Tensor = self.pause_heads(hidden_BTD)
        return logits

    def initial_tokens(self, batch: int) -> tuple[Tensor, Tensor]:
        """The tokens of position 0: text `[B, 1]` and audio `[B, K, 1]`."""
        device = self.text_linear.weight.device
        text = torch.full((batch, 1), self.config.text_initial_id, device=device)
        audio = torch.full((batch, self.config.num_codebooks, 1), self.config.audio_initial_id, device=device)
        return text, audio

    def condition(self, values: Mapping[str, float | str | Tensor] | None = None) -> Tensor | None:
        """The sum of all conditions, `[1, D]`; a conditioner without a value gives its learnt padding.

        None for a model without conditioners. Raises `ConfigError` for an unknown name or value.
        """
        values = values or {}
        check_conditions(self.config, values)
        if not self.conditioners:
            return None
        parts = [module(values.get(name)) for name, module in self.conditioners.items()]
        return torch.stack(parts).sum(dim=0)


class TokenEmbedding(nn.Embedding):
    """An embedding in which `NO_TOKEN` is zero."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.clamp(min=0)) * (tokens != NO_TOKEN)[..., None]


class AudioEmbedding(nn.Module):
    """One table for each codebook, summed: `[B, K, T] -> [B, T, D]`. `NO_TOKEN` adds nothing."""

    def __init__(self, num_codebooks: int, size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_codebooks, size, dim))

    def forward(self, codes_BKT: Tensor) -> Tensor:
        K, size, _ = self.weight.shape
        rows = codes_BKT.clamp(min=0) + size * torch.arange(K, device=codes_BKT.device)[:, None]
        parts_BKTD = nn.functional.embedding(rows, self.weight.flatten(0, 1))
        return (parts_BKTD * (codes_BKT != NO_TOKEN)[..., None]).sum(dim=1)


class PauseHeads(nn.Module):
    """Linear heads, one for each horizon: `[B, T, D] -> [B, T, H, classes]`."""

    def __init__(self, heads: int, classes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(heads, classes, dim) / math.sqrt(dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        logits: Tensor = nn.functional.linear(x_BTD, self.weight.flatten(0, 1)).unflatten(-1, self.weight.shape[:2])
        return logits


class Conditioner(nn.Module):
    """One condition as a vector `[1, D]`, added to every input of the LM."""

    def __init__(self, config: ConditionerConfig, output_dim: int) -> None:
        super().__init__()
        self.config = config
        if config.kind == "lut":
            self.embed = nn.Embedding(config.num_bins + 1, config.dim)
        self.output_proj = nn.Linear(config.dim, output_dim, bias=False)
        self.learnt_padding = nn.Parameter(0.2 * torch.randn(output_dim))

    def forward(self, value: float | str | Tensor | None) -> Tensor:
        if value is None:
            return self.learnt_padding[None]
        projected: Tensor = self.output_proj(self._embed(value).to(self.output_proj.weight))
        return projected

    def _embed(self, value: float | str | Tensor) -> Tensor:
        config, device = self.config, self.output_proj.weight.device
        if config.kind == "lut":
            embedded: Tensor = self.embed(torch.tensor([condition_row(config, value)], device=device))
            return embedded
        if not isinstance(value, Tensor):
            value = torch.tensor(condition_number(config, value))
        elif config.kind == "continuous":
            value = value * config.scale_factor
        value = value.to(device, torch.float32)
        if config.kind == "tensor":
            return value.reshape(-1, config.dim)
        phase = value.reshape(-1, 1) / torch.from_numpy(condition_periods(config)).to(device)
        return torch.cat([phase.cos(), phase.sin()], dim=-1)
