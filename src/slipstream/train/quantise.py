"""Training the split residual quantiser: moving averages for its codebooks, a straight-through gradient past them."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from slipstream.torch_model.mimi import Codebook, ResidualVQ, SplitResidualVQ

DECAY = 0.98
DEAD_USAGE = 0.1
"""Moving average of the vectors assigned to an entry in one batch, below which it is given a new place."""


def quantise(
    quantizer: SplitResidualVQ, latent_BTD: Tensor, *, update: bool
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What the semantic and the acoustic quantiser make of a latent `[B, T, D]`.

    Gives their projected inputs and quantised outputs, two of each, `[B, T, codebook_dim]` float32, and the commitment
    loss. The gradient of an output goes to its input unchanged (arXiv:1711.00937, section 3.2). With `update`, the
    codebooks move towards what was assigned to them (its appendix A.1).
    """
    inputs, outputs = [], []
    commitment = latent_BTD.new_zeros((), dtype=torch.float32)
    for branch in (quantizer.semantic, quantizer.acoustic):
        projected = F.linear(latent_BTD.float(), branch.input_proj.weight.float())
        quantised, loss = _residual(branch, projected, update)
        inputs.append(projected)
        outputs.append(projected + (quantised - projected).detach())
        commitment = commitment + loss
    return inputs, outputs, commitment


def _residual(branch: ResidualVQ, x_BTD: Tensor, update: bool) -> tuple[Tensor, Tensor]:
    residual = x_BTD.flatten(0, 1)
    total = torch.zeros_like(residual)
    loss = x_BTD.new_zeros(())
    for module in branch.codebooks:
        codebook = cast(Codebook, module)
        with torch.no_grad():
            codes = codebook.nearest(residual)
            vectors = codebook(codes)
            if update:
                _move(codebook, residual, codes)
        loss = loss + F.mse_loss(residual, vectors)
        residual = residual - vectors
        total = total + vectors
    return total.view_as(x_BTD), loss / len(branch.codebooks)


@torch.no_grad()
def _move(codebook: Codebook, x_ND: Tensor, codes_N: Tensor) -> None:
    size = len(codebook.cluster_usage)
    counts = torch.bincount(codes_N, minlength=size).float()
    sums = torch.zeros_like(codebook.embedding_sum).index_add_(0, codes_N, x_ND)
    codebook.cluster_usage.mul_(DECAY).add_(counts, alpha=1 - DECAY)
    codebook.embedding_sum.mul_(DECAY).add_(sums, alpha=1 - DECAY)
    dead = codebook.cluster_usage < DEAD_USAGE
    count = int(dead.sum())
    if count:
        chosen = x_ND[torch.randint(len(x_ND), (count,))]
        codebook.cluster_usage[dead] = 1.0
        codebook.embedding_sum[dead] = chosen
    codebook.refresh()


@torch.no_grad()
def start_codebooks(quantizer: SplitResidualVQ, latent_ND: Tensor, rounds: int = 8) -> None:
    """Place every codebook by k-means on latents `[N, D]`, each on what the ones before it leave over."""
    for branch in (quantizer.semantic, quantizer.acoustic):
        residual = F.linear(latent_ND.float(), branch.input_proj.weight.float())
        for module in branch.codebooks:
            codebook = cast(Codebook, module)
            size = len(codebook.cluster_usage)
            codebook.cluster_usage.fill_(1.0)
            codebook.embedding_sum.copy_(residual[torch.randperm(len(residual))[:size]])
            codebook.refresh()
            for _ in range(rounds):
                codes = codebook.nearest(residual)
                counts = torch.bincount(codes, minlength=size).float()
                sums = torch.zeros_like(codebook.embedding_sum).index_add_(0, codes, residual)
                used = counts > 0
                codebook.cluster_usage[used] = counts[used]
                codebook.embedding_sum[used] = sums[used]
                codebook.refresh()
            residual = residual - codebook(codebook.nearest(residual))
