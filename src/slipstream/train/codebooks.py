"""Training the split residual quantiser: moving averages for its codebooks, a straight-through gradient past them."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from slipstream.nn.mimi import Codebook, ResidualVQ, SplitResidualVQ

DECAY = 0.98
DEAD_USAGE = 0.1
"""Moving average of the vectors assigned to an entry in one batch, below which it is given a new place."""


def quantise(
    quantizer: SplitResidualVQ, latent_BTD: Tensor, *, update: bool, kept_B: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Quantise a latent `[B, T, D]` with the semantic and the acoustic quantiser.

    Returns their projected inputs and quantised outputs, two of each, `[B, T, codebook_dim]` float32, and the
    commitment loss. The gradient of an output goes to its input unchanged (arXiv:1711.00937, section 3.2). With
    `update`, the codebooks move towards what was assigned to them (its appendix A.1). `kept_B`: how many acoustic
    codebooks each row's output is made of (quantiser dropout); all of them by default.
    """
    inputs, outputs = [], []
    commitment = latent_BTD.new_zeros((), dtype=torch.float32)
    for branch in (quantizer.semantic, quantizer.acoustic):
        projected = F.linear(latent_BTD.float(), branch.input_proj.weight.float())
        quantised, loss = _residual(branch, projected, update, kept_B if branch is quantizer.acoustic else None)
        inputs.append(projected)
        outputs.append(projected + (quantised - projected).detach())
        commitment = commitment + loss
    return inputs, outputs, commitment


def _residual(branch: ResidualVQ, x_BTD: Tensor, update: bool, kept_B: Tensor | None) -> tuple[Tensor, Tensor]:
    residual = x_BTD.flatten(0, 1)
    total = torch.zeros_like(residual)
    loss = x_BTD.new_zeros(())
    for k, module in enumerate(branch.codebooks):
        codebook = cast(Codebook, module)
        with torch.no_grad():
            codes = codebook.nearest(residual)
            vectors = codebook(codes)
            if update:
                _move(codebook, residual, codes)
        loss = loss + F.mse_loss(residual, vectors)
        residual = residual - vectors
        if kept_B is not None:
            vectors = vectors * (kept_B > k).repeat_interleave(x_BTD.shape[1])[:, None]
        total = total + vectors
    return total.view_as(x_BTD), loss / len(branch.codebooks)


@torch.no_grad()
def _move(codebook: Codebook, x_ND: Tensor, codes_N: Tensor) -> None:
    size = len(codebook.cluster_usage)
    counts, sums = _assigned(x_ND, codes_N, size)
    codebook.cluster_usage.mul_(DECAY).add_(counts, alpha=1 - DECAY)
    codebook.embedding_sum.mul_(DECAY).add_(sums, alpha=1 - DECAY)
    # Every entry draws a new place, dead or not: to count the dead ones would wait for the device.
    dead = codebook.cluster_usage < DEAD_USAGE
    drawn = x_ND[torch.randint(len(x_ND), (size,), device=x_ND.device)].to(codebook.embedding_sum)
    codebook.cluster_usage.masked_fill_(dead, 1.0)
    codebook.embedding_sum.copy_(torch.where(dead[:, None], drawn, codebook.embedding_sum))
    codebook.refresh()


def _assigned(x_ND: Tensor, codes_N: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many vectors are assigned to each entry, `[size]`, and their sums, `[size, D]`."""
    sums = x_ND.new_zeros(size, x_ND.shape[1], dtype=torch.float32).index_add_(0, codes_N, x_ND.float())
    # Not `bincount`, which reads the largest code on the host.
    return sums.new_zeros(size).index_add_(0, codes_N, sums.new_ones(len(codes_N))), sums


@torch.no_grad()
def start_codebooks(quantizer: SplitResidualVQ, latent_ND: Tensor, rounds: int = 8) -> None:
    """Place every codebook by k-means on latents `[N, D]`, each on what the ones before it leave over."""
    for branch in (quantizer.semantic, quantizer.acoustic):
        residual = F.linear(latent_ND.float(), branch.input_proj.weight.float())
        for module in branch.codebooks:
            codebook = cast(Codebook, module)
            size = len(codebook.cluster_usage)
            codebook.cluster_usage.fill_(1.0)
            codebook.embedding_sum.copy_(residual[torch.randperm(len(residual))[:size].to(residual.device)])
            codebook.refresh()
            for _ in range(rounds):
                codes = codebook.nearest(residual)
                counts, sums = _assigned(residual, codes, size)
                used = counts > 0
                codebook.cluster_usage[used] = counts[used]
                codebook.embedding_sum[used] = sums[used]
                codebook.refresh()
            residual = residual - codebook(codebook.nearest(residual))


@torch.no_grad()
def start_projections(quantizer: SplitResidualVQ, latent_ND: Tensor) -> None:
    """Project latents `[N, D]` onto their principal components, dealt out between the two quantisers in turn.

    Components are scaled to the fourth root of their variance, so that the codebooks keep some of the smaller ones.
    """
    centred = latent_ND.float() - latent_ND.float().mean(dim=0)
    branches = (quantizer.semantic, quantizer.acoustic)
    count = sum(len(branch.input_proj.weight) for branch in branches)
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    order = variance.argsort(descending=True)[:count]
    rows = (axes[:, order] * variance[order].clamp(min=1e-6) ** -0.25).T
    rows /= (centred @ rows.T).std()
    for number, branch in enumerate(branches):
        weight = branch.input_proj.weight
        chosen = rows[number::2][: len(weight)]
        weight[: len(chosen)] = chosen


class CodebookStart:
    """Places the codebooks, once, when a run comes to step `start`; a `start` of 0 takes them as they are.

    The latents are those of the run's first rows as the codec makes them at that step, so that a resumed run
    places them in the same way.
    """

    ROWS, AT_ONCE = 64, 8

    def __init__(self, quantizer: SplitResidualVQ, start: int) -> None:
        self.quantizer, self.start, self.placed = quantizer, start, start == 0

    def __call__(self, step: int, latent: Callable[[int, int], Tensor]) -> None:
        """`latent(first, count)` computes `[B, T, D]` of `count` rows from row `first`.

        Without gradients nothing is placed: a held-out loss changes nothing.
        """
        if self.placed or step != self.start or not torch.is_grad_enabled():
            return
        self.placed = True
        with torch.no_grad():
            self._place(latent)

    def _place(self, latent: Callable[[int, int], Tensor]) -> None:
        latents = [latent(first, self.AT_ONCE).float().flatten(0, 1) for first in range(0, self.ROWS, self.AT_ONCE)]
        start_codebooks(self.quantizer, torch.cat(latents))
        if dist.is_initialized():
            for buffer in moving_buffers(self.quantizer):
                dist.broadcast(buffer, 0)
        refresh(self.quantizer)


def moving_buffers(quantizer: SplitResidualVQ) -> list[Tensor]:
    """The codebooks' moving averages."""
    return [b for name, b in quantizer.named_buffers() if name.endswith(("embedding_sum", "cluster_usage"))]


def refresh(quantizer: SplitResidualVQ) -> None:
    """Recompute the codebooks' vectors from their averages."""
    for module in quantizer.modules():
        if isinstance(module, Codebook):
            module.refresh()
