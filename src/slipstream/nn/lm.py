"""The language model: reads the audio tokens of a frame and its own last text token, writes the next text token.

Shapes: B slots, T positions, K codebooks, D width, V text vocabulary, H pause heads.
Position 0 holds the initial tokens; position t + 1 holds (text_t, audio_t) and yields text_{t+1}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slipstream.model.config import ConditionerConfig, LMConfig
from slipstream.model.numerics import check_conditions, condition_number, condition_periods, condition_row
from slipstream.nn.cross import sines
from slipstream.nn.decoder import WhisperDecoder
from slipstream.nn.depth import DepthTransformer
from slipstream.nn.embeddings import AudioEmbedding, TextEmbedding, TokenEmbedding
from slipstream.nn.layers import Transformer, make_norm
from slipstream.nn.ring import RingFormat
from slipstream.nn.state import State


class LM(nn.Module):
    """A decoder-only Transformer over one text stream and `num_codebooks` audio streams."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        D = config.transformer.dim
        self.config = config
        embedding = TextEmbedding(config.text_vocab + 1, D, demux=True) if config.demux_text else None
        self.text_emb = embedding or TokenEmbedding(config.text_vocab + 1, D)
        self.audio_emb = AudioEmbedding(config.num_codebooks, config.audio_vocab + 1, D)
        self.conditioners = nn.ModuleDict({c.name: Conditioner(c, D) for c in config.conditioners})
        self.transformer = WhisperDecoder(config) if config.whisper else Transformer(config.transformer)
        self.out_norm = make_norm(config.transformer)
        self.text_linear = nn.Linear(D, config.text_outputs or config.text_vocab, bias=False)
        self.pause_heads = PauseHeads(config.pause_heads, config.pause_classes, D) if config.pause_heads else None
        self.depth = DepthTransformer(config) if config.depth else None

    def init_state(self, batch: int, max_step: int = 1, rings: RingFormat | None = None) -> State:
        """State of `batch` fresh streams that advance by at most `max_step` positions at a time."""
        return self.transformer.init_state(batch, max_step, rings)

    def forward(
        self,
        text_BT: Tensor,
        audio_BKT: Tensor,
        state: State | None = None,
        condition_BD: Tensor | None = None,
        cross_BL2HSD: Tensor | None = None,
    ) -> tuple[Tensor, State | None]:
        """Tokens `[B, T]` and `[B, K, T]` to the normalised output `[B, T, D]` that all heads read.

        `condition_BD` (`[B, D]` or `[1, D]`, see `condition`) is added to every input. `cross_BL2HSD`: the keys and
        values of what the cross-attention reads, `transformer.cross_keys(fuse_cross(...))`.
        """
        return self.embedded(text_BT, self.audio_emb(audio_BKT), state, condition_BD, cross_BL2HSD)

    def embedded(
        self,
        text_BT: Tensor,
        audio_BTD: Tensor,
        state: State | None = None,
        condition_BD: Tensor | None = None,
        cross_BL2HSD: Tensor | None = None,
        first_B: Tensor | None = None,
    ) -> tuple[Tensor, State | None]:
        """`forward` for audio that is embedded already, `[B, T, D]`. `first_B`: see `WhisperDecoder.forward`."""
        if isinstance(self.transformer, WhisperDecoder):
            x_BTD, state = self.transformer(text_BT, self.text_emb, audio_BTD, state, first_B)
            return self.out_norm(x_BTD), state
        x_BTD = audio_BTD + self.text_emb(text_BT).to(audio_BTD.dtype)
        if condition_BD is not None:
            x_BTD = x_BTD + condition_BD[:, None].to(x_BTD)
        x_BTD, state = self.transformer(x_BTD, state, cross_BL2HSD)
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

    def depth_logits(self, hidden_BTD: Tensor, text_BT: Tensor, audio_BKT: Tensor) -> Tensor:
        """Scores of the audio tokens of frames that are known, `[B, K, T, V]`; see `DepthTransformer.forward`."""
        if self.depth is None:
            raise ValueError("this model writes no audio")
        audio_NK = audio_BKT.transpose(1, 2).flatten(0, 1)
        logits_NKV: Tensor = self.depth(hidden_BTD.flatten(0, 1), text_BT.flatten(), audio_NK)
        logits_BTKV: Tensor = logits_NKV.unflatten(0, text_BT.shape)
        return logits_BTKV.transpose(1, 2)

    def condition(self, values: Mapping[str, float | str | Tensor] | None = None) -> Tensor | None:
        """The sum of the conditions that are added, `[1, D]`; a conditioner without a value gives its learnt padding.

        None for a model without such conditioners. Raises `ConfigError` for an unknown name or value.
        """
        values = values or {}
        check_conditions(self.config, values)
        names = [c.name for c in self.config.conditioners if c.fuse == "sum"]
        if not names:
            return None
        return torch.stack([self.conditioners[name](values.get(name)) for name in names]).sum(dim=0)

    def fuse_cross(self, parts_BSD: Mapping[str, Tensor]) -> Tensor | None:
        """The sequence that the cross-attention reads, from that of each of its conditions: `[B, S, D]`.

        None for a model without cross-attention.
        """
        names = [c.name for c in self.config.conditioners if c.fuse == "cross"]
        if not names:
            return None
        source = torch.cat([parts_BSD[name] for name in names], dim=1)
        if scale := self.config.cross_position_scale:
            position = torch.arange(source.shape[1], device=source.device)
            source = source + scale * sines(position, source.shape[2], 10_000.0).to(source)
        return source


class PauseHeads(nn.Module):
    """Linear heads, one for each horizon: `[B, T, D] -> [B, T, H, classes]`."""

    def __init__(self, heads: int, classes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(heads, classes, dim) / math.sqrt(dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        logits: Tensor = nn.functional.linear(x_BTD, self.weight.flatten(0, 1)).unflatten(-1, self.weight.shape[:2])
        return logits


class Conditioner(nn.Module):
    """One condition, as a vector `[1, D]` that is added to every input of the LM, or as a sequence of vectors."""

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

    def sequence(self, vectors_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """Conditions at several positions, `[B, S, D]`; those where the mask is 0 are the learnt padding."""
        weight = self.output_proj.weight
        mask = mask_BS[..., None].to(weight)
        projected: Tensor = self.output_proj(vectors_BSD.to(weight))
        return projected * mask + self.learnt_padding * (1 - mask)

    def _embed(self, value: float | str | Tensor) -> Tensor:
        config, device = self.config, self.output_proj.weight.device
        if config.kind == "lut":
            embedded: Tensor = self.embed(torch.full((1,), condition_row(config, value), device=device))
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
