"""Whisper's audio encoder with limited context, one step of a stream at a time; see `nn.whisper`.

Shapes: B slots, S samples, M bands, T positions of one step, D width, H heads, C ring columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from slipstream.arrays import IntArray
from slipstream.backends.mlx.layers import CausalConv1d
from slipstream.backends.mlx.state import Ring
from slipstream.model.config import TransformerConfig, WhisperConfig
from slipstream.model.numerics import LAYER_NORM_EPS, delayed_sees, ring_capacity, ring_keys, whisper_positions


class WhisperPositions(NamedTuple):
    """What the T positions of one step need in each slot, computed on the host.

    `columns_BT`: the ring's column of each. `masks` `[L, B, 1, T, C]`: the columns that its query sees in each layer.
    `sines_BTD`: what is added to the layers' input. `live_BT1`: whether the output has begun.
    """

    columns_BT: mx.array
    masks: mx.array
    sines_BTD: mx.array
    live_BT1: mx.array


class WhisperAttention(nn.Module):
    """Attention with biases, except that of the keys, which changes nothing."""

    def __init__(self, config: WhisperConfig | TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.scale = config.head_dim**-0.5
        self.q_proj = nn.Linear(config.dim, config.dim)
        self.k_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.dim)
        self.out_proj = nn.Linear(config.dim, config.dim)

    def heads(self, x_BTD: mx.array) -> mx.array:
        return x_BTD.reshape(*x_BTD.shape[:2], self.num_heads, -1).swapaxes(1, 2)

    def keys_values(self, x_BTD: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values `[B, H, T, D / H]`."""
        return self.heads(self.k_proj(x_BTD)), self.heads(self.v_proj(x_BTD))

    def __call__(self, query_BTD: mx.array, ring: Ring, mask: mx.array) -> mx.array:
        q = self.heads(self.q_proj(query_BTD))
        y = mx.fast.scaled_dot_product_attention(q, ring.k, ring.v, scale=self.scale, mask=mask)
        return self.out_proj(y.swapaxes(1, 2).reshape(query_BTD.shape))


class WhisperFeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, config: WhisperConfig | TransformerConfig) -> None:
        super().__init__()
        self.linear_in = nn.Linear(config.dim, config.ffn_dim)
        self.linear_out = nn.Linear(config.ffn_dim, config.dim)

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.linear_out(nn.gelu(self.linear_in(x)))
        return y


class WhisperLayer(nn.Module):
    """Attention whose queries and residual lag behind the keys, then feed-forward."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, LAYER_NORM_EPS)
        self.attn = WhisperAttention(config)
        self.norm2 = nn.LayerNorm(config.dim, LAYER_NORM_EPS)
        self.ffn = WhisperFeedForward(config)

    def __call__(
        self, x_BTD: mx.array, state: dict[str, Any], columns_BT: mx.array, mask: mx.array
    ) -> tuple[mx.array, dict[str, Any]]:
        T = x_BTD.shape[1]
        ring = state["ring"].write(columns_BT, *self.attn.keys_values(self.norm1(x_BTD)))
        x_BTD = mx.concatenate([state["delayed"], x_BTD], axis=1)
        x_BTD, delayed = x_BTD[:, :T], x_BTD[:, T:]
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD), ring, mask)
        return x_BTD + self.ffn(self.norm2(x_BTD)), {"delayed": delayed, "ring": ring}


class WhisperEncoder(nn.Module):
    """Log-mel frames `[B, 2 T, M]` to features `[B, T, D]` at 50 Hz, `config.delay` positions late."""

    def __init__(self, config: WhisperConfig, step: int) -> None:
        super().__init__()
        self.config = config
        self.step = step
        self.capacity = ring_capacity(config.context, step, config.lookahead)
        self.conv1 = CausalConv1d(config.n_mels, config.dim, 3)
        self.conv2 = CausalConv1d(config.dim, config.dim, 3, stride=2)
        self.layers = [WhisperLayer(config) for _ in range(config.num_layers)]
        self.norm = nn.LayerNorm(config.dim, LAYER_NORM_EPS)
        self._sines = whisper_positions(config.dim)

    def init_state(self, batch: int) -> dict[str, Any]:
        c = self.config
        return {
            "conv1": self.conv1.init_state(batch),
            "conv2": self.conv2.init_state(batch),
            "layers": [
                {
                    "delayed": mx.zeros((batch, c.lookahead, c.dim)),
                    "ring": Ring.empty(batch, c.num_heads, self.capacity, c.head_dim, mx.float32),
                }
                for _ in self.layers
            ],
        }

    def locate(self, first_B: IntArray, start_B: IntArray) -> WhisperPositions:
        """The positions of the next step, for slots whose first new position is `first_B`.

        `start_B`: the sinusoidal position of each stream's first one.
        """
        position_BT = first_B[:, None] + np.arange(self.step)
        key_BC = ring_keys(position_BT[:, -1:], np.arange(self.capacity))
        # The keys of each layer are `lookahead` positions older than those of the layer below.
        first_L = np.arange(len(self.layers)) * self.config.lookahead
        seen = delayed_sees(position_BT[:, :, None], key_BC[:, None], self.config, first_L[:, None, None, None])
        return WhisperPositions(
            columns_BT=mx.array((position_BT % self.capacity).astype(np.int32)),
            masks=mx.array(seen[:, :, None]),
            sines_BTD=mx.array(self._sines[(position_BT + start_B[:, None]) % len(self._sines)]),
            live_BT1=mx.array(position_BT[..., None] >= self.config.delay),
        )

    def __call__(
        self, mel_BFM: mx.array, state: dict[str, Any], at: WhisperPositions
    ) -> tuple[mx.array, dict[str, Any]]:
        x, conv1 = self.conv1(mel_BFM, state["conv1"])
        x, conv2 = self.conv2(nn.gelu(x), state["conv2"])
        x_BTD = nn.gelu(x) + at.sines_BTD
        layers = []
        for i, (layer, old) in enumerate(zip(self.layers, state["layers"], strict=True)):
            x_BTD, new = layer(x_BTD, old, at.columns_BT, at.masks[i])
            layers.append(new)
        y_BTD = self.norm(x_BTD) * at.live_BT1
        return y_BTD, {"conv1": conv1, "conv2": conv2, "layers": layers}
