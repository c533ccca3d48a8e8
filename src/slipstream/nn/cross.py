"""Cross-attention to a sequence of conditions, which does not change during a stream.

Shapes: B slots, T positions, S positions of the conditions, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slipstream.model.config import TransformerConfig
from slipstream.model.numerics import LAYER_NORM_EPS


class CrossAttention(nn.Module):
    """A norm, and attention to the keys and values of the conditions; without a mask, and without positions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.in_proj = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out_proj = nn.Linear(config.dim, config.dim, bias=False)

    def keys(self, source_BSD: Tensor) -> Tensor:
        """Keys and values `[B, 2, H, S, head_dim]` of the conditions `[B, S, D]`; computed once for a stream."""
        B, S, D = source_BSD.shape
        kv = F.linear(source_BSD.to(self.in_proj.weight), self.in_proj.weight[D:])
        return kv.view(B, S, 2, self.num_heads, -1).permute(0, 2, 3, 1, 4)

    def forward(self, x_BTD: Tensor, kv_B2HSD: Tensor | None) -> Tensor:
        """What the conditions add to `x`."""
        if kv_B2HSD is None:
            raise ValueError("this model attends to conditions, such as a voice: none are given")
        B, T, D = x_BTD.shape
        q = F.linear(self.norm(x_BTD), self.in_proj.weight[:D]).view(B, T, self.num_heads, -1).transpose(1, 2)
        k, v = kv_B2HSD.unbind(dim=1)
        if len(k) != B:  # the conditions of one stream for all
            k, v = k.expand(B, -1, -1, -1), v.expand(B, -1, -1, -1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, D)
        out: Tensor = self.out_proj(y)
        return out


def sines(position_BT: Tensor, dim: int, max_period: float) -> Tensor:
    """Cosines, then sines, of positions `[..., T]`: `[..., T, dim]`, with periods from 1 to `max_period` over 2 pi."""
    half = dim // 2
    exponent = torch.arange(half, device=position_BT.device, dtype=torch.float64) / (half - 1)
    phase = position_BT[..., None] / max_period**exponent
    return torch.cat([phase.cos(), phase.sin()], dim=-1).float()
