"""Attention over rings compared with float64: what the format of the ring and the arithmetic of a step change."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from slipstream.model.config import TransformerConfig
from slipstream.model.numerics import ring_capacity
from slipstream.nn import fused
from slipstream.nn.layers import locate, ring_attention, rotations
from slipstream.nn.ring import Ring, RingFormat, hadamard


def transformer(dim: int, heads: int, context: int) -> TransformerConfig:
    """One layer of heads of `dim` numbers."""
    return TransformerConfig(
        dim=dim * heads, num_heads=heads, num_layers=1, ffn_dim=1, context=context, max_period=1e5, norm="rms_norm",
        gated=True,
    )  # fmt: skip


@torch.inference_mode()
def attention_error(
    config: TransformerConfig, rings: RingFormat, device: torch.device, dtype: torch.dtype, step: int, *, kernels: bool
) -> float:
    """Return the relative error of one step's attention, in the kernels or in PyTorch.

    Three streams in random slots of rings with random numbers: one whose ring is not full, one at the wrap, one far
    past it. The reference gets the queries, keys and values before they are rounded for the ring.
    """
    torch.manual_seed(0)
    H, D, capacity = config.num_heads, config.head_dim, ring_capacity(config.context, step)
    rings = replace(rings, kernels=kernels)
    ring = Ring.empty((1, 4, H, capacity, D), device=device, dtype=dtype, format=rings, step=step)
    position_R = torch.tensor([config.context // 2, ring.capacity - 1, 5 * ring.capacity + 3])
    slots_R = torch.tensor([3, 0, 2])
    past = config.context + step - 1  # positions that are in a full ring
    at_RP = position_R[:, None] - past + torch.arange(past + step)
    qkv_RP3HD = torch.randn(3, past + step, 3, H, D).to(dtype)
    q, k, v = qkv_RP3HD.double().permute(2, 0, 3, 1, 4)
    turn = torch.view_as_complex(_double(rotations(at_RP, D, config.max_period)))
    q, k = (torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2) for x in (q, k))
    true = _attention(q[:, :, past:], k, v, at_RP, config.context)

    chosen = replace(ring.map(lambda buffer: buffer[:, slots_R.to(device)]), slots_R=None)
    for row in range(3):
        kept = slice(int((at_RP[row, :past] < 0).sum()), past)
        held = k[row : row + 1, :, kept].float()
        one = chosen.map(lambda buffer, row=row: buffer[:, row : row + 1])
        columns = (at_RP[row : row + 1, kept] % ring.capacity).to(device)
        values = v[row : row + 1, :, kept].to(device, dtype)
        one.layer(0).write(columns, (hadamard(held) if rings.hadamard else held).to(device), values)
    for buffer, values in zip(ring.tensors, chosen.tensors, strict=True):
        buffer[:, slots_R.to(device)] = values
    position_RT = at_RP[:, past:].to(device)
    at = locate(config, position_RT, ring.capacity, dtype)
    new = qkv_RP3HD[:, past:].to(device)
    if kernels:
        found = fused.ring_attention(new, at, replace(ring, slots_R=slots_R.to(device)).layer(0))
    else:
        found = ring_attention(new, at, chosen.layer(0))
    return float((found.double().cpu() - true).norm() / true.norm())


def _attention(q_RHTD: Tensor, k_RHPD: Tensor, v_RHPD: Tensor, at_RP: Tensor, context: int) -> Tensor:
    """Softmax over the last `context` positions of each query: `[R, T, H * D]`."""
    now_RT = at_RP[:, -q_RHTD.shape[2] :]
    age_RTP = now_RT[:, :, None] - at_RP[:, None]
    seen = (age_RTP >= 0) & (age_RTP < context) & (at_RP[:, None] >= 0)
    scores = (q_RHTD @ k_RHPD.mT) / math.sqrt(q_RHTD.shape[-1])
    weights = scores.masked_fill(~seen[:, None], -math.inf).softmax(-1)
    return (weights @ v_RHPD).transpose(1, 2).flatten(2)


def _double(rotation: Tensor) -> Tensor:
    return torch.view_as_real(rotation).double()
