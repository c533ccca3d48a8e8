"""Whisper's audio encoder with limited context, so that it runs on a stream.

A layer sees `context` positions and `lookahead` positions after them. In a stream it delays its queries and residual
by `lookahead` positions while its keys advance, so that the output equals that of the whole sequence, `config.delay`
positions later. Shapes: B slots, S samples, M bands, F log-mel frames, T positions, D width, H heads, C ring columns.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slipstream.model.config import TransformerConfig, WhisperConfig
from slipstream.model.numerics import (
    LAYER_NORM_EPS,
    WHISPER_POSITIONS,
    delayed_sees,
    ring_capacity,
    ring_keys,
    whisper_positions,
)
from slipstream.nn.layers import CausalConv1d, attend
from slipstream.nn.ring import LayerRing, Ring, RingFormat
from slipstream.nn.state import State

BLOCK = 128
"""Queries of a block in `attend_nearby`. With 250 keys before it, blocks of 250 take 1.7 times as long on a CPU."""


class WhisperAttention(nn.Module):
    """Self-attention with biases, except that of the keys, which changes nothing."""

    def __init__(self, config: WhisperConfig | TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(config.dim, config.dim)
        self.k_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.dim)
        self.out_proj = nn.Linear(config.dim, config.dim)

    def heads(self, x_BTD: Tensor) -> Tensor:
        return cast(Tensor, x_BTD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2))

    def keys(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, H, T, D / H]`."""
        return self.heads(self.k_proj(x_BTD)), self.heads(self.v_proj(x_BTD))

    def queries(self, x_BTD: Tensor) -> Tensor:
        return self.heads(self.q_proj(x_BTD))

    def output(self, y_BHTD: Tensor) -> Tensor:
        projected: Tensor = self.out_proj(y_BHTD.transpose(1, 2).flatten(2))
        return projected


class WhisperFeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, config: WhisperConfig | TransformerConfig) -> None:
        super().__init__()
        self.linear_in = nn.Linear(config.dim, config.ffn_dim)
        self.linear_out = nn.Linear(config.ffn_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear_out(F.gelu(self.linear_in(x)))
        return y


class WhisperLayer(nn.Module):
    """Attention, then feed-forward, each on a normalised input and added back."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.context, self.lookahead = config.context, config.lookahead
        self.norm1 = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.attn = WhisperAttention(config)
        self.norm2 = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.ffn = WhisperFeedForward(config)

    def forward(self, x_BTD: Tensor, bidirectional: bool, lookahead: int | None = None) -> Tensor:
        """The whole sequence, without delay. `lookahead`: another one than the layer's."""
        x = self.norm1(x_BTD)
        q, (k, v) = self.attn.queries(x), self.attn.keys(x)
        if bidirectional:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = attend_nearby(q, k, v, self.context, self.lookahead if lookahead is None else lookahead)
        return self._finish(x_BTD, y)

    def step(
        self, x_BTD: Tensor, delayed_BRD: Tensor, ring: LayerRing, columns_BT: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """T positions of a stream: the output, `lookahead` positions late, and the inputs that are delayed next."""
        ring.write(columns_BT, *self.attn.keys(self.norm1(x_BTD)))
        x_BTD = torch.cat([delayed_BRD, x_BTD], dim=1)
        T = columns_BT.shape[1]
        x_BTD, delayed_BRD = x_BTD[:, :T], x_BTD[:, T:]
        y = F.scaled_dot_product_attention(self.attn.queries(self.norm1(x_BTD)), *ring.read(x_BTD.dtype), mask)
        return self._finish(x_BTD, y), delayed_BRD

    def _finish(self, x_BTD: Tensor, y_BHTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn.output(y_BHTD)
        return x_BTD + cast(Tensor, self.ffn(self.norm2(x_BTD)))


class WhisperEncoder(nn.Module):
    """Log-mel frames `[B, M, 2 T]` to features `[B, T, D]` at 50 Hz.

    `hidden` runs whole sequences without delay, to train; `forward` delays them as a stream does. `checkpointing`
    recomputes each layer in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = CausalConv1d(config.n_mels, config.dim, 3)
        self.conv2 = CausalConv1d(config.dim, config.dim, 3, stride=2)
        self.layers = nn.ModuleList(WhisperLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.positions: Tensor
        self.register_buffer("positions", torch.from_numpy(whisper_positions(config.dim)), persistent=False)
        self.checkpointing = False

    def init_state(self, batch: int, max_step: int, rings: RingFormat | None = None) -> dict[str, State]:
        """State for `batch` streams that advance by at most `max_step` positions at a time.

        `start` is the sinusoidal position of each stream's first one.
        """
        weight, config = self.conv1.weight, self.config
        capacity = ring_capacity(config.context, max_step, config.lookahead)
        shape = (config.num_layers, batch, config.num_heads, capacity, config.head_dim)
        # The kernels see neither positions ahead nor keys of another age.
        rings = replace(rings, kernels=False) if rings else None
        return {
            "conv1": self.conv1.init_state(batch),
            "conv2": self.conv2.init_state(batch),
            "position": torch.zeros(batch, dtype=torch.int64, device=weight.device),
            "start": torch.zeros(batch, dtype=torch.int64, device=weight.device),
            "delayed": [weight.new_zeros(batch, config.lookahead, config.dim) for _ in self.layers],
            "ring": Ring.empty(shape, device=weight.device, dtype=weight.dtype, format=rings, step=max_step),
        }

    def hidden(
        self,
        mel_BMF: Tensor,
        *,
        bidirectional: bool = False,
        start_B: Tensor | None = None,
        lookahead: int | None = None,
    ) -> list[Tensor]:
        """Each layer's output for whole sequences, `[B, T, D]`, the last one normalised.

        Position t is not delayed: its centre is log-mel frame 2 t - 1.

        Args:
            mel_BMF: log-mel frames, an even number of them.
            bidirectional: let each position see all others, as Whisper does.
            start_B: the sinusoidal position (int64, below `WHISPER_POSITIONS`) of each row's first frame; 0 by default.
                Draw it at random in training: a stream goes through all positions again and again.
            lookahead: positions that each layer sees ahead; those of the configuration by default.
        """
        x, _ = self.conv1(mel_BMF)
        x, _ = self.conv2(F.gelu(x))
        x_BTD = F.gelu(x).transpose(1, 2)
        steps_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        x_BTD = x_BTD + self._sines(steps_T[None] if start_B is None else steps_T + start_B[:, None])
        outputs = []
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                x_BTD = cast(Tensor, checkpoint(layer, x_BTD, bidirectional, lookahead, use_reentrant=False))
            else:
                x_BTD = layer(x_BTD, bidirectional, lookahead)
            outputs.append(x_BTD)
        return [*outputs[:-1], self.norm(x_BTD)]

    def forward(self, mel_BMF: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """Features of a stream, `[B, T, D]`: position t holds that of `config.delay` positions before, or zeros."""
        if state is None:
            y_BTD = F.pad(self.hidden(mel_BMF)[-1], (0, 0, self.config.delay, 0))
            return y_BTD[:, : mel_BMF.shape[-1] // 2], None
        old = cast("dict[str, Tensor]", state)
        x, conv1 = self.conv1(mel_BMF, old["conv1"])
        x, conv2 = self.conv2(F.gelu(x), old["conv2"])
        x_BTD = F.gelu(x).transpose(1, 2)
        position_BT = old["position"][:, None] + torch.arange(x_BTD.shape[1], device=x_BTD.device)
        x_BTD = x_BTD + self._sines(position_BT + old["start"][:, None])
        ring, delayed = cast(Ring, old["ring"]), cast("dict[str, list[Tensor]]", state)["delayed"]
        new: list[State] = []
        for i, layer in enumerate(cast("list[WhisperLayer]", self.layers)):
            # All layers use the same columns; their keys are i * lookahead positions older.
            mask = self._mask(position_BT, ring.capacity, i * self.config.lookahead, x_BTD.dtype)
            x_BTD, later = layer.step(x_BTD, delayed[i], ring.layer(i), position_BT % ring.capacity, mask)
            new.append(later)
        y_BTD = self.norm(x_BTD) * (position_BT >= self.config.delay)[..., None]
        position = position_BT[:, -1] + 1
        tails: dict[str, State] = {"conv1": conv1, "conv2": conv2, "position": position, "start": old["start"]}
        return y_BTD, {**tails, "delayed": new, "ring": ring}

    def _sines(self, position_BT: Tensor) -> Tensor:
        return F.embedding(position_BT % WHISPER_POSITIONS, self.positions).to(self.conv1.weight.dtype)

    def _mask(self, position_BT: Tensor, capacity: int, first: int, dtype: torch.dtype) -> Tensor:
        """What each query adds to its scores, `[B, 1, T, C]`; keys start at `first`."""
        key_BC = ring_keys(position_BT[:, -1:], torch.arange(capacity, device=position_BT.device))
        visible = delayed_sees(position_BT[:, :, None], key_BC[:, None], self.config, first)
        mask = torch.zeros(visible.shape, device=visible.device, dtype=dtype)
        return mask.masked_fill(~visible, -math.inf)[:, None]


def attend_nearby(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, context: int, lookahead: int) -> Tensor:
    """Attention of each query to `context` keys, its own the last, and `lookahead` after it, in blocks of queries.

    A long row costs less than with a mask over all pairs: a block of queries reads `context` keys more than it has.
    """
    B, T = q_BHTD.shape[0], q_BHTD.shape[2]
    width = min(BLOCK, T)
    blocks = -(-T // width)
    span = context - 1 + width + lookahead
    filler = blocks * width - T

    def spans(x: Tensor) -> Tensor:  # [B, H, T, D] -> [B * blocks, H, span, D]
        padded = F.pad(x, (0, 0, context - 1, filler + lookahead))
        cut: Tensor = padded.unfold(2, span, width).permute(0, 2, 1, 4, 3)
        return cut.flatten(0, 1)

    q = F.pad(q_BHTD, (0, 0, 0, filler)).unflatten(2, (blocks, width)).transpose(1, 2).flatten(0, 1)
    first = width * torch.arange(blocks, device=q.device)[:, None, None]
    query = first + torch.arange(width, device=q.device)[:, None]
    key = first + torch.arange(span, device=q.device) - (context - 1)
    visible = (query - key < context) & (key - query <= lookahead) & (key >= 0) & (key < T)
    visible |= query >= T  # what fills the last block may see anything, so that no row of scores is empty
    mask = torch.zeros(visible.shape, device=q.device, dtype=q.dtype).masked_fill(~visible, -math.inf)
    y = attend(q, spans(k_BHTD), spans(v_BHTD), mask.repeat(B, 1, 1)[:, None])
    whole: Tensor = y.unflatten(0, (B, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :T]
    return whole
