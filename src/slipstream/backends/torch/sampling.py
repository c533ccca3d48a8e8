"""Pick a token from its scores."""

from __future__ import annotations

import torch
from torch import Tensor

from slipstream.model.config import SamplingConfig


def pick_token(logits_BV: Tensor, sampling: SamplingConfig, generator: torch.Generator | None = None) -> Tensor:
    """Pick a token for each row of scores, `[B]`: the best at temperature 0, else a sample of the `top_k` best."""
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        least = logits_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, -torch.inf)
    probability = (logits_BV / sampling.temperature).softmax(dim=-1)
    # The largest of p / Exp(1) falls on i with probability p_i: a draw without a host synchronisation.
    noise = torch.empty_like(probability).exponential_(generator=generator)
    return (probability / noise).argmax(dim=-1)
