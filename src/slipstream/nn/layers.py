"""Causal convolutions and Transformer layers: the arithmetic shared by the codec and the LM.

Shapes: B slots, T positions, D width, H heads, C ring columns, S samples or positions of a convolution.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slipstream.model.config import TransformerConfig
from slipstream.model.numerics import LAYER_NORM_EPS, RMS_EPS, ring_capacity, ring_keys, rotary_angles, sees
from slipstream.nn import fused
from slipstream.nn.cross import CrossAttention, sines
from slipstream.nn.ring import LayerRing, Ring, RingFormat, hadamard
from slipstream.nn.state import State


class CausalConv1d(nn.Conv1d):
    """A convolution that sees only the past: `[B, C, S] -> [B, C', S / stride]`.

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
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, dilation=dilation, bias=bias)
        self.context = (kernel_size - 1) * dilation + 1 - stride
        self.replicate = replicate

    def init_state(self, batch: int) -> Tensor:
        # NaN marks inputs that a stream does not have yet; no finite input can make one.
        unset = math.nan if self.replicate else 0.0
        return torch.full(
            (batch, self.in_channels, self.context), unset, device=self.weight.device, dtype=self.weight.dtype
        )

    def forward(  # type: ignore[override]
        self, x: Tensor, state: Tensor | None = None, *, elu: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Convolve `x`, or with `elu` its activation."""
        if self.context == 0:
            return super().forward(F.elu(x) if elu else x), x[..., :0]
        if state is None:
            state = self.init_state(x.shape[0])
        if self.replicate:
            state = torch.where(state.isnan(), x[..., :1], state)
        x = fused.elu_after(state, x) if elu else torch.cat([state, x], dim=-1)
        return super().forward(x), x[..., x.shape[-1] - self.context :]


class CausalConvTranspose1d(nn.ConvTranspose1d):
    """A transposed convolution, cut to what the past decides: `[B, C, T] -> [B, C', T * stride]`.

    The state is what the inputs so far add to the next `kernel_size - stride` outputs.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, groups=groups, bias=bias)
        self.overlap = kernel_size - stride

    def init_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.out_channels, self.overlap, device=self.weight.device, dtype=self.weight.dtype)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = F.conv_transpose1d(x, self.weight, None, self.stride, groups=self.groups)
        if state is not None:
            y = torch.cat([y[..., : self.overlap] + state, y[..., self.overlap :]], dim=-1)
        done = y.shape[-1] - self.overlap
        tail, y = y[..., done:], y[..., :done]
        return (y if self.bias is None else y + self.bias[:, None]), tail


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32, whatever the input's type."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return fused.rms_norm(x, self.weight, RMS_EPS)


def make_norm(config: TransformerConfig) -> nn.Module:
    return RMSNorm(config.dim) if config.norm == "rms_norm" else nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)


def unrotated(position_BT: Tensor, head_dim: int) -> Tensor:
    """Rotations by no angle, for a Transformer whose positions are not rotations."""
    shape = (*position_BT[:, None].shape, head_dim // 2)
    return torch.ones(shape, dtype=torch.complex64, device=position_BT.device)


def rotations(position_BT: Tensor, head_dim: int, max_period: float) -> Tensor:
    """Unit complex numbers `[B, 1, T, head_dim / 2]` that turn the pairs of a head at each position."""
    pair = torch.arange(head_dim // 2, device=position_BT.device, dtype=torch.float64)
    angle = rotary_angles(position_BT[:, None, :, None], pair, head_dim, max_period)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def rotate(x_BHTD: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring pairs of each head by the position's angles (rotary embedding, arXiv:2104.09864)."""
    return rotate_float(x_BHTD, rotation).to(x_BHTD.dtype)


def rotate_float(x_BHTD: Tensor, rotation: Tensor) -> Tensor:
    """`rotate` without rounding to the type of `x`."""
    if torch.compiler.is_compiling():  # which cannot fuse complex products; they take half the time elsewhere
        even, odd = x_BHTD.float().unflatten(-1, (-1, 2)).unbind(-1)
        cosine, sine = torch.view_as_real(rotation).unbind(-1)
        return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2)
    pairs = torch.view_as_complex(x_BHTD.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2)


class Positions(NamedTuple):
    """What all layers of a step share: positions, their rotations, the columns they are written to, and the mask."""

    position_BT: Tensor
    rotation: Tensor
    columns_BT: Tensor
    mask: Tensor
    context: int


def locate(config: TransformerConfig, position_BT: Tensor, capacity: int | None, dtype: torch.dtype) -> Positions:
    """The positions of a step in rings of `capacity` columns, or without rings in a whole sequence."""
    columns_BT = key_position = position_BT
    if capacity is not None:
        columns_BT = position_BT % capacity
        key_position = ring_keys(position_BT[:, -1:], torch.arange(capacity, device=position_BT.device))
    mask = attention_mask(position_BT, key_position, config.context, dtype)
    if config.positions == "rope":
        rotation = rotations(position_BT, config.head_dim, config.max_period)
    else:
        rotation = unrotated(position_BT, config.head_dim)
    return Positions(position_BT, rotation, columns_BT, mask, config.context)


class Attention(nn.Module):
    """Causal self-attention. With a ring, queries read its columns instead of this call's own keys."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.in_proj = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out_proj = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, at: Positions, ring: LayerRing | None) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = self.in_proj(x_BTD).view(B, T, 3, self.num_heads, -1)
        if ring is not None:
            fuse = fused.ring_attention if ring.format.kernels else ring_attention
            y = fuse(qkv, at, ring)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = attend(rotate(q, at.rotation), rotate(k, at.rotation), v, at.mask).transpose(1, 2).reshape(B, T, D)
        projected: Tensor = self.out_proj(y)
        return projected


def ring_attention(qkv_BT3HD: Tensor, at: Positions, ring: LayerRing) -> Tensor:
    """Rotate queries and keys, append keys and values to the ring, and attend to its columns: `[B, T, H * D]`."""
    q, k, v = qkv_BT3HD.permute(2, 0, 3, 1, 4)
    q, k = rotate_float(q, at.rotation), rotate_float(k, at.rotation)
    if ring.format.hadamard:
        q, k = hadamard(q), hadamard(k)
    ring.write(at.columns_BT, k, v)
    return attend(q.to(v.dtype), *ring.read(v.dtype), at.mask).transpose(1, 2).flatten(2)


def attend(q_BHTD: Tensor, k_BHCD: Tensor, v_BHCD: Tensor, mask_B1TC: Tensor) -> Tensor:
    """Scaled dot-product attention; `mask_B1TC`, or a mask for each head, is added to the scores."""
    if not (q_BHTD.is_cpu and q_BHTD.requires_grad):
        return F.scaled_dot_product_attention(q_BHTD, k_BHCD, v_BHCD, mask_B1TC)
    # On CPU the library's kernel takes three times as long to differentiate as these matrix products.
    B, H, T, D = q_BHTD.shape
    mask = mask_B1TC.expand(B, H, T, -1).flatten(0, 1)
    scores = torch.baddbmm(mask, q_BHTD.flatten(0, 1), k_BHCD.flatten(0, 1).transpose(1, 2), alpha=D**-0.5)
    return (scores.softmax(-1) @ v_BHCD.flatten(0, 1)).view(B, H, T, D)


class FeedForward(nn.Module):
    """Two linear layers: gated by SiLU (the LM), or with GELU between (the codec)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gated = config.gated
        self.linear_in = nn.Linear(config.dim, config.ffn_dim * (2 if config.gated else 1), bias=False)
        self.linear_out = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear_in(x)
        x = fused.silu_multiply(x) if self.gated else F.gelu(x)
        y: Tensor = self.linear_out(x)
        return y


class TransformerLayer(nn.Module):
    """Attention, then feed-forward, each on a normalised input and added back, with an optional learnt scale."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = make_norm(config)
        self.attn = Attention(config)
        self.cross = CrossAttention(config) if config.cross_attention else None
        self.norm2 = make_norm(config)
        self.ffn = FeedForward(config)
        self.scale1 = nn.Parameter(torch.full((config.dim,), 0.01)) if config.layer_scale else None
        self.scale2 = nn.Parameter(torch.full((config.dim,), 0.01)) if config.layer_scale else None

    def forward(self, x: Tensor, at: Positions, ring: LayerRing | None, cross_B2HSD: Tensor | None = None) -> Tensor:
        y: Tensor = self.attn(self.norm1(x), at, ring)
        x = x + (y if self.scale1 is None else y * self.scale1)
        if self.cross is not None:
            x = x + self.cross(x, cross_B2HSD)
        y = self.ffn(self.norm2(x))
        return x + (y if self.scale2 is None else y * self.scale2)


class Transformer(nn.Module):
    """A stack of causal layers whose queries see the last `config.context` positions.

    The state is `{"position": [B], "ring": Ring}`. `checkpointing` recomputes each layer in the backward pass
    instead of keeping its activations.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.checkpointing = False

    def init_state(self, batch: int, max_step: int, rings: RingFormat | None = None) -> dict[str, State]:
        """State for `batch` streams that advance by at most `max_step` positions at a time."""
        weight, config = cast(TransformerLayer, self.layers[0]).attn.in_proj.weight, self.config
        capacity = ring_capacity(config.context, max_step)
        shape = (config.num_layers, batch, config.num_heads, capacity, config.head_dim)
        return {
            "position": torch.zeros(batch, dtype=torch.int64, device=weight.device),
            "ring": Ring.empty(shape, device=weight.device, dtype=weight.dtype, format=rings, step=max_step),
        }

    def cross_keys(self, source_BSD: Tensor) -> Tensor:
        """The keys and values of the sequence that the cross-attention reads, `[B, L, 2, H, S, head_dim]`."""
        crosses = [cast(CrossAttention, cast(TransformerLayer, layer).cross) for layer in self.layers]
        return torch.stack([cross.keys(source_BSD) for cross in crosses], dim=1)

    def forward(
        self, x_BTD: Tensor, state: State | None = None, cross_BL2HSD: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        T, config = x_BTD.shape[1], self.config
        position_BT = torch.arange(T, device=x_BTD.device)[None]
        ring, position = unpack(state)
        if ring is not None and position is not None:
            room = ring.capacity - config.context + 1
            if room < T:
                raise ValueError(f"a step of {T} positions, but the state was made for {room}")
            position_BT = position[:, None] + position_BT
        if ring is not None and ring.format.kernels:  # which work out columns and mask from the positions
            rotation = rotations(position_BT, config.head_dim, config.max_period)
            at = Positions(position_BT, rotation, position_BT, position_BT, config.context)
        else:
            at = locate(config, position_BT, ring.capacity if ring is not None else None, x_BTD.dtype)
        if config.positions == "sin":
            x_BTD = x_BTD + sines(position_BT, config.dim, config.max_period).to(x_BTD)
        for i, layer in enumerate(self.layers):
            cross = None if cross_BL2HSD is None else cross_BL2HSD[:, i]
            if self.checkpointing and torch.is_grad_enabled():
                x_BTD = checkpoint(layer, x_BTD, at, None, cross, use_reentrant=False)
            else:
                x_BTD = layer(x_BTD, at, None if ring is None else ring.layer(i), cross)
        if ring is None:
            return x_BTD, None
        return x_BTD, {"position": position_BT[:, -1] + 1, "ring": ring}


def unpack(state: State | None) -> tuple[Ring, Tensor] | tuple[None, None]:
    """The ring and the positions `[B]` of a Transformer's state."""
    if state is None:
        return None, None
    assert isinstance(state, dict)
    return cast(Ring, state["ring"]), cast(Tensor, state["position"])


def attention_mask(position_BT: Tensor, key_position_BC: Tensor, context: int, dtype: torch.dtype) -> Tensor:
    """What each query adds to its scores, `[B, 1, T, C]`: 0 for the last `context` positions, else minus infinity."""
    visible = sees(position_BT[:, :, None], key_position_BC[:, None, :], context)
    mask = torch.zeros(visible.shape, device=visible.device, dtype=dtype)
    return mask.masked_fill(~visible, -math.inf)[:, None]
