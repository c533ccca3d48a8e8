"""Pick a token from its scores."""

from __future__ import annotations

import torch
from torch import Tensor

from slipstream.model.config import SamplingConfig


def pick_token(
    logits_BV: Tensor,
    sampling: SamplingConfig,
    generator: torch.Generator | None = None,
    noise_BV: Tensor | None = None,
) -> Tensor:
    """Pick a token for each row of scores, `[B]`: the best at temperature 0, else a sample of the `top_k` best.

    `noise_BV`: exponential noise to draw with, instead of the generator's; see `row_noise`.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        least = logits_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, -torch.inf)
    probability = (logits_BV / sampling.temperature).softmax(dim=-1)
    # The largest of p / Exp(1) falls on i with probability p_i: a draw without a host synchronisation.
    noise = noise_BV if noise_BV is not None else torch.empty_like(probability).exponential_(generator=generator)
    return (probability / noise).argmax(dim=-1)


def row_noise(seed_B: Tensor, count_B: Tensor, size: int) -> Tensor:
    """Exponential noise `[B, size]` that depends on a row's seed and count only, not on the batch that it is in.

    The integers are mixed as in SplitMix64 (Steele et al., 2014, figure 16), which passes statistical tests.
    """
    column = torch.arange(size, device=seed_B.device)
    x = _mixed(_mixed(seed_B) + count_B)[:, None] + column * _GOLDEN
    bits = _mixed(x) >> 40 & 0xFFFFFF  # 24 bits, which float32 holds exactly
    return -torch.log((bits.float() + 0.5) / 2**24)


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * (0x94D049BB133111EB - 2**64)
    return x ^ (x >> 31 & (1 << 33) - 1)
