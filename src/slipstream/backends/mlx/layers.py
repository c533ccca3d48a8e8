"""Causal convolutions and Transformer layers: the arithmetic shared by the codec and the LM.

Shapes: B slots, T positions of one step, D width, H heads, C ring columns, P pairs of a head, S samples or positions
of a convolution.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from slipstream.arrays import IntArray
from slipstream.backends.mlx.state import Ring
from slipstream.model.config import TransformerConfig
from slipstream.model.numerics import LAYER_NORM_EPS, RMS_EPS, ring_capacity, ring_keys, rotations, sees


class CausalConv1d(nn.Module):
    """A convolution that sees only the past: `[B, S, C] -> [B, S / stride, C']`.

    The state is the `context` last inputs. The left of a stream is zeros, or with `replicate` its first input again.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        replicate: bool = False,
    ) -> None:
        super().__init__()
        self.weight = mx.zeros((out_channels, kernel_size, in_channels))
        if bias:
            self.bias = mx.zeros(out_channels)
        self.stride = stride
        self.dilation = dilation
        self.context = (kernel_size - 1) * dilation + 1 - stride
        self.replicate = replicate

    def init_state(self, batch: int) -> mx.array:
        # NaN marks inputs that a stream does not have yet; no finite input can make one.
        unset = math.nan if self.replicate else 0.0
        return mx.full((batch, self.context, self.weight.shape[2]), unset, self.weight.dtype)

    def __call__(self, x_BSC: mx.array, state: mx.array) -> tuple[mx.array, mx.array]:
        if self.replicate:
            state = mx.where(mx.isnan(state), x_BSC[:, :1], state)
        x_BSC = mx.concatenate([state, x_BSC], axis=1)
        y = mx.conv1d(x_BSC, self.weight, stride=self.stride, dilation=self.dilation)
        return (y + self.bias if "bias" in self else y), x_BSC[:, x_BSC.shape[1] - self.context :]


def make_norm(config: TransformerConfig) -> nn.Module:
    if config.norm == "rms_norm":
        return nn.RMSNorm(config.dim, RMS_EPS)
    return nn.LayerNorm(config.dim, LAYER_NORM_EPS)


class Positions(NamedTuple):
    """What the T positions of one step need in each slot.

    Computed on the host in 64 bits, which Apple's GPUs do not have for floats.
    `columns_BT`: the ring's column of each. `mask` `[B, 1, T, C]`: the columns that its query sees.
    `cos`, `sin` `[B, 1, T, P]`: the angles that turn its pairs.
    """

    columns_BT: mx.array
    mask: mx.array
    cos: mx.array
    sin: mx.array


def rotate(x_BHTD: mx.array, at: Positions) -> mx.array:
    """Turn neighbouring pairs of each head by the position's angles (rotary embedding, arXiv:2104.09864)."""
    pairs = x_BHTD.astype(mx.float32).reshape(*x_BHTD.shape[:-1], -1, 2)
    real, imaginary = pairs[..., 0], pairs[..., 1]
    turned = mx.stack([real * at.cos - imaginary * at.sin, real * at.sin + imaginary * at.cos], axis=-1)
    return turned.reshape(x_BHTD.shape).astype(x_BHTD.dtype)


class Attention(nn.Module):
    """Causal self-attention: queries read the columns of the ring."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.scale = config.head_dim**-0.5
        self.in_proj = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out_proj = nn.Linear(config.dim, config.dim, bias=False)

    def __call__(self, x_BTD: mx.array, ring: Ring, at: Positions) -> tuple[mx.array, Ring]:
        B, T, D = x_BTD.shape
        qkv = self.in_proj(x_BTD).reshape(B, T, 3, self.num_heads, -1)
        q, k, v = (qkv[:, :, part].swapaxes(1, 2) for part in range(3))
        ring = ring.write(at.columns_BT, rotate(k, at), v)
        y = mx.fast.scaled_dot_product_attention(rotate(q, at), ring.k, ring.v, scale=self.scale, mask=at.mask)
        return self.out_proj(y.swapaxes(1, 2).reshape(B, T, D)), ring


class FeedForward(nn.Module):
    """Two linear layers: gated by SiLU (the LM), or with GELU between (the codec)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gated = config.gated
        self.linear_in = nn.Linear(config.dim, config.ffn_dim * (2 if config.gated else 1), bias=False)
        self.linear_out = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.linear_in(x)
        if self.gated:
            gate, value = mx.split(x, 2, axis=-1)
            x = nn.silu(gate) * value
        else:
            x = nn.gelu(x)
        y: mx.array = self.linear_out(x)
        return y


class TransformerLayer(nn.Module):
    """Attention, then feed-forward, each on a normalised input and added back, with an optional learnt scale."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = make_norm(config)
        self.attn = Attention(config)
        self.norm2 = make_norm(config)
        self.ffn = FeedForward(config)
        self.scaled = config.layer_scale
        if self.scaled:
            self.scale1 = mx.ones(config.dim)
            self.scale2 = mx.ones(config.dim)

    def __call__(self, x: mx.array, ring: Ring, at: Positions) -> tuple[mx.array, Ring]:
        y, ring = self.attn(self.norm1(x), ring, at)
        x = x + (y * self.scale1 if self.scaled else y)
        y = self.ffn(self.norm2(x))
        return x + (y * self.scale2 if self.scaled else y), ring


class Transformer(nn.Module):
    """A stack of causal layers that advances by `step` positions; queries see the last `config.context` positions.

    The state is one ring for each layer.
    """

    def __init__(self, config: TransformerConfig, step: int) -> None:
        super().__init__()
        self.config = config
        self.step = step
        self.capacity = ring_capacity(config.context, step)
        self.layers = [TransformerLayer(config) for _ in range(config.num_layers)]

    def init_state(self, batch: int, dtype: mx.Dtype) -> list[Ring]:
        c = self.config
        return [Ring.empty(batch, c.num_heads, self.capacity, c.head_dim, dtype) for _ in self.layers]

    def locate(self, first_B: IntArray) -> Positions:
        """Positions of the next step of slots whose first new position is `first_B`."""
        config = self.config
        position_BT = first_B[:, None] + np.arange(self.step)
        key_BC = ring_keys(position_BT[:, -1:], np.arange(self.capacity))
        cos, sin = rotations(position_BT[:, None], config.head_dim, config.max_period)
        return Positions(
            columns_BT=mx.array((position_BT % self.capacity).astype(np.int32)),
            mask=mx.array(sees(position_BT[:, :, None], key_BC[:, None], config.context)[:, None]),
            cos=mx.array(cos),
            sin=mx.array(sin),
        )

    def __call__(self, x_BTD: mx.array, rings: list[Ring], at: Positions) -> tuple[mx.array, list[Ring]]:
        new = []
        for layer, ring in zip(self.layers, rings, strict=True):
            x_BTD, ring = layer(x_BTD, ring, at)
            new.append(ring)
        return x_BTD, new
