"""The loss with which Kyutai's models are trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor,
    dtype: torch.dtype = torch.float32,
    logits_soft_clip: float | None = None,
) -> Tensor:
    """Return the cross entropy of each code, `[B, K, T]`; 0 where the mask is false.

    Args:
        logits: Scores `[B, K, T, V]`.
        targets: Codes `[B, K, T]`.
        mask: Which codes count, `[B, K, T]`. Scores of the others may be NaN.
        dtype: Type of the computation and of the result.
        logits_soft_clip: Scores beyond this are limited smoothly, by a hyperbolic tangent.
    """
    scores = logits.to(dtype).masked_fill(~mask[..., None], 0)
    if logits_soft_clip is not None:
        scores = logits_soft_clip * torch.tanh(scores / logits_soft_clip)
    losses = F.cross_entropy(scores.flatten(0, -2), targets.masked_fill(~mask, 0).flatten(), reduction="none")
    return losses.view_as(targets) * mask
