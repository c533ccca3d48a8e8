"""The depth Transformer: writes the audio tokens of one frame, codebook after codebook.

A frame is a separate sequence of K positions: position k reads the LM's output, the text token (k = 0) or the audio
token of codebook k - 1, and gives the scores of codebook k. Its weights are those of set `schedule[k]`.
Shapes: N frames (slots, or slots times steps), K codebooks, D width, W sets of weights, V audio vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slipstream.model.config import DepthConfig, LMConfig
from slipstream.model.numerics import LAYER_NORM_EPS, NO_TOKEN, RMS_EPS
from slipstream.nn import fused
from slipstream.nn.cross import sines
from slipstream.nn.embeddings import TextEmbedding
from slipstream.nn.layers import make_norm

Keys = list[tuple[Tensor, Tensor]]
"""The keys and values of each layer for the codebooks so far, `[N, H, k, head_dim]`: the state within a frame."""


class DepthTransformer(nn.Module):
    """The depth Transformer of an LM. `step` is one codebook; `forward` is all of them, with given tokens."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        depth = config.depth
        assert depth is not None
        self.config = depth
        transformer, K = depth.transformer, depth.num_codebooks
        self.in_proj = StepLinear(depth.schedule, config.transformer.dim, transformer.dim)
        self.text_emb = TextEmbedding(config.text_vocab + 1, transformer.dim, config.demux_text, depth.low_rank)
        self.audio_emb = StepEmbedding(K - 1, config.audio_vocab + 1, transformer.dim, depth.low_rank)
        self.layers = nn.ModuleList(DepthLayer(depth) for _ in range(transformer.num_layers))
        self.out_norms = StepNorm(K, transformer.dim, depth.output_norm) if depth.output_norm else None
        self.linears = StepLinear(tuple(range(K)), transformer.dim, config.audio_vocab)

    def forward(self, hidden_ND: Tensor, text_N: Tensor, audio_NK: Tensor) -> Tensor:
        """Score all codebooks of frames whose tokens are known: `[N, K, V]`.

        Args:
            hidden_ND: The LM's output for each frame.
            text_N: The text token of each frame.
            audio_NK: The audio tokens. The last codebook's is not read.
        """
        K = self.config.num_codebooks
        x_NKD = self.in_proj(hidden_ND[:, None].expand(-1, K, -1))
        tokens = [self.text_emb(text_N)] + [self.audio_emb(audio_NK[:, k], k) for k in range(K - 1)]
        x_NKD, _ = self._layers(x_NKD + torch.stack(tokens, dim=1), [], 0)
        return self._logits(x_NKD, 0)

    def step(self, k: int, hidden_ND: Tensor, token_N: Tensor, keys: Keys) -> tuple[Tensor, Keys]:
        """Score codebook `k`, `[N, V]`, and return the keys for the next one.

        Args:
            k: The codebook.
            hidden_ND: The LM's output for the frame.
            token_N: The text token for k = 0, else the token of codebook k - 1.
            keys: What the step before returned; empty for k = 0.
        """
        embedded = self.text_emb(token_N) if k == 0 else self.audio_emb(token_N, k - 1)
        x_N1D, keys = self._layers(self.in_proj(hidden_ND[:, None], k) + embedded[:, None], keys, k)
        return self._logits(x_N1D, k)[:, 0], keys

    def write(self, hidden_ND: Tensor, text_B: Tensor, codebooks: int, pick: Callable[[Tensor], Tensor]) -> Tensor:
        """Write the first codebooks of a frame, `[B, codebooks]`.

        Args:
            hidden_ND: The LM's output; several blocks of B rows for guidance.
            text_B: The text token of each stream.
            codebooks: How many are written.
            pick: Turns scores `[N, V]` into tokens `[B]`.
        """
        blocks = len(hidden_ND) // len(text_B)
        token_B, keys, written = text_B, cast(Keys, []), []
        for k in range(codebooks):
            logits_NV, keys = self.step(k, hidden_ND, token_B.repeat(blocks), keys)
            token_B = pick(logits_NV)
            written.append(token_B)
        return torch.stack(written, dim=1)

    def _layers(self, x_NKD: Tensor, keys: Keys, first: int) -> tuple[Tensor, Keys]:
        transformer = self.config.transformer
        if transformer.positions == "sin":
            position = torch.arange(first, first + x_NKD.shape[1], device=x_NKD.device)
            x_NKD = x_NKD + sines(position, transformer.dim, transformer.max_period).to(x_NKD)
        new: Keys = []
        for i, layer in enumerate(self.layers):
            x_NKD, kv = layer(x_NKD, keys[i] if keys else None, first)
            new.append(kv)
        return x_NKD, new

    def _logits(self, x_NKD: Tensor, first: int) -> Tensor:
        if self.out_norms is not None:
            x_NKD = self.out_norms(x_NKD, first)
        logits: Tensor = self.linears(x_NKD, first)
        return logits


class DepthLayer(nn.Module):
    """Causal attention within the frame, then a gated feed-forward; the norms are shared by all codebooks."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        D, schedule = config.transformer.dim, config.schedule
        self.num_heads = config.transformer.num_heads
        self.norm1 = make_norm(config.transformer)
        self.attn = nn.ModuleDict({"in_proj": StepLinear(schedule, D, 3 * D), "out_proj": StepLinear(schedule, D, D)})
        self.norm2 = make_norm(config.transformer)
        F_ = config.transformer.ffn_dim
        self.ffn = nn.ModuleDict(
            {"linear_in": StepLinear(schedule, D, 2 * F_), "linear_out": StepLinear(schedule, F_, D)}
        )

    def forward(
        self, x_NKD: Tensor, keys: tuple[Tensor, Tensor] | None, first: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        N, K, D = x_NKD.shape
        qkv = self.attn["in_proj"](self.norm1(x_NKD), first).view(N, K, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if keys is not None:
            k, v = torch.cat([keys[0], k], dim=2), torch.cat([keys[1], v], dim=2)
        # A single query may see everything: the keys so far, and its own.
        y = F.scaled_dot_product_attention(q, k, v, is_causal=K > 1)
        x_NKD = x_NKD + self.attn["out_proj"](y.transpose(1, 2).reshape(N, K, D), first)
        gated = fused.silu_multiply(self.ffn["linear_in"](self.norm2(x_NKD), first))
        return x_NKD + self.ffn["linear_out"](gated, first), (k, v)


# ------------------------------------------------------------------------------------- weights by codebook


class StepLinear(nn.Module):
    """A linear layer without bias whose weights `[W, out, in]` depend on the codebook: set `schedule[k]`."""

    def __init__(self, schedule: tuple[int, ...], in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.schedule = schedule
        self.weight = nn.Parameter(torch.randn(max(schedule) + 1, out_dim, in_dim) / math.sqrt(in_dim))

    def forward(self, x_NKI: Tensor, first: int = 0) -> Tensor:
        """Project the inputs of codebooks `first`, `first + 1`, ...: `[N, K, in]` to `[N, K, out]`."""
        used = self.schedule[first : first + x_NKI.shape[1]]
        if len(used) == 1:
            return F.linear(x_NKI, self.weight[used[0]])
        parts, start = [], 0
        for number, run in itertools.groupby(used):
            end = start + len(list(run))
            parts.append(F.linear(x_NKI[:, start:end], self.weight[number]))
            start = end
        return torch.cat(parts, dim=1)


class StepEmbedding(nn.Module):
    """One table for each codebook `[K, V, R]`, in which `NO_TOKEN` is zero, and a projection from R to D."""

    def __init__(self, num_codebooks: int, size: int, dim: int, low_rank: int | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_codebooks, size, low_rank or dim))
        self.low_rank = None
        if low_rank:
            self.low_rank = nn.Parameter(torch.randn(num_codebooks, dim, low_rank) / math.sqrt(low_rank))

    def forward(self, tokens: Tensor, k: int) -> Tensor:
        """Embed the tokens of codebook k: `[...]` to `[..., D]`."""
        embedded = F.embedding(tokens.clamp(min=0), self.weight[k]) * (tokens != NO_TOKEN)[..., None]
        return embedded if self.low_rank is None else F.linear(embedded, self.low_rank[k])


class StepNorm(nn.Module):
    """A norm for each codebook."""

    def __init__(self, num_codebooks: int, dim: int, kind: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_codebooks, dim))
        self.bias = nn.Parameter(torch.zeros(num_codebooks, dim)) if kind == "layer_norm" else None

    def forward(self, x_NKD: Tensor, first: int) -> Tensor:
        weight = self.weight[first : first + x_NKD.shape[1]]
        if self.bias is None:
            x = F.rms_norm(x_NKD.float(), weight.shape[-1:], None, RMS_EPS)
            return (x * weight.float()).to(x_NKD.dtype)
        x = F.layer_norm(x_NKD, weight.shape[-1:], eps=LAYER_NORM_EPS)
        return x * weight + self.bias[first : first + x_NKD.shape[1]]
