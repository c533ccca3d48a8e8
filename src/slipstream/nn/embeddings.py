"""Embeddings of tokens, in which `NO_TOKEN` is zero. Shapes: B slots, T positions, K codebooks, D width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slipstream.model.numerics import NO_TOKEN


class TokenEmbedding(nn.Embedding):
    """An embedding in which `NO_TOKEN` is zero."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.clamp(min=0)) * (tokens != NO_TOKEN)[..., None]


class TextEmbedding(TokenEmbedding):
    """An embedding of text tokens `[...] -> [..., D]`, of one or two streams, with an optional narrower table.

    With two streams, a token is `(second + 1) * size + first`, where `second` can be `NO_TOKEN`. Both are looked up in
    the same table, and projected by separate matrices.
    """

    def __init__(self, size: int, dim: int, demux: bool, low_rank: int | None = None) -> None:
        super().__init__(size, low_rank or dim)
        self.low_rank = nn.Linear(low_rank, dim, bias=False) if low_rank else None
        self.out1 = nn.Linear(low_rank or dim, dim, bias=False) if demux else None
        self.out2 = nn.Linear(low_rank or dim, dim, bias=False) if demux else None

    def forward(self, tokens: Tensor) -> Tensor:
        if self.out1 is None or self.out2 is None:
            embedded = super().forward(tokens)
            projected: Tensor = embedded if self.low_rank is None else self.low_rank(embedded)
            return projected
        first, second = tokens.clamp(min=0) % self.num_embeddings, tokens.clamp(min=0) // self.num_embeddings - 1
        pair: Tensor = self.out1(super().forward(first)) + self.out2(super().forward(second))
        return torch.where((tokens == NO_TOKEN)[..., None], 0, pair)


class AudioEmbedding(nn.Module):
    """One table for each codebook, summed: `[B, K, T] -> [B, T, D]`. `NO_TOKEN` adds nothing."""

    def __init__(self, num_codebooks: int, size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_codebooks, size, dim))

    def forward(self, codes_BKT: Tensor) -> Tensor:
        K, size, _ = self.weight.shape
        rows = codes_BKT.clamp(min=0) + size * torch.arange(K, device=codes_BKT.device)[:, None]
        parts_BKTD = nn.functional.embedding(rows, self.weight.flatten(0, 1))
        return (parts_BKTD * (codes_BKT != NO_TOKEN)[..., None]).sum(dim=1)
