"""Muon (momentum, orthogonalised) with matrices of one shape in one product and shared out among the processes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration (https://kellerjordan.github.io/posts/muon/)."""
ITERATIONS = 5
AT_ONCE = 1 << 24
"""Numbers that are orthogonalised in one product, at most: more only takes more memory."""


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, at AdamW's size (arXiv:2502.16982), so that one rate serves both.

    Orthogonalising is most of the work and needs a matrix's whole gradient. Each process does it for its share of the
    matrices and sends the result to the others, so the weights are the same bits in all of them. Every process has all
    momenta, so a run can resume with another number of processes.

    Args:
        matrices: parameters `[M, N]`, or groups of them.
        weight_decay: share of a weight that decays, per unit of the rate.
        momentum: share of the momentum that is kept at each step.
        dtype: type of the products that orthogonalise. It is part of the state, so a run that resumes keeps it.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor] | Iterable[dict[str, Any]],
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        options = {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum, "dtype": dtype}
        super().__init__([*matrices], options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            self._step_group(group)

    def _step_group(self, group: dict[str, Any]) -> None:
        matrices: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        if not matrices:
            return
        gradients = [p.grad for p in matrices if p.grad is not None]
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = list(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        _orthogonalise_all(updates, group["dtype"])
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        scales = [-0.2 * group["lr"] * math.sqrt(max(matrix.shape)) for matrix in matrices]
        torch._foreach_mul_(updates, scales)
        torch._foreach_add_(matrices, updates)


def orthogonalise(matrices_NAB: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Move the singular values of each matrix `[N, A, B]` to about 1 (0.7 to 1.2) by Newton-Schulz iterations.

    They compute in `dtype`.
    """
    a, b, c = COEFFICIENTS
    x = matrices_NAB.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices_NAB.dtype)


def share_out(shapes: list[torch.Size], processes: int) -> list[list[list[int]]]:
    """For each process, groups of indices of equal shape, each no more than `AT_ONCE` numbers.

    The largest go first, each to the process that has the least to do.
    """
    costs = [min(shape) ** 2 * (2 * max(shape) + min(shape)) for shape in shapes]
    load = [0.0] * processes
    mine: list[dict[torch.Size, list[int]]] = [defaultdict(list) for _ in range(processes)]
    for index in sorted(range(len(shapes)), key=lambda i: -costs[i]):
        process = load.index(min(load))
        load[process] += costs[index]
        mine[process][shapes[index]].append(index)
    return [[part for shape, same in groups.items() for part in _parts(shape, same)] for groups in mine]


def _parts(shape: torch.Size, indices: list[int]) -> list[list[int]]:
    most = max(1, AT_ONCE // shape.numel())
    return [indices[first : first + most] for first in range(0, len(indices), most)]


def _orthogonalise_all(updates: list[Tensor], dtype: torch.dtype) -> None:
    """Orthogonalise in place, each process its share."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    shares = share_out([update.shape for update in updates], processes)
    for group in shares[rank]:
        for index, done in zip(group, orthogonalise(torch.stack([updates[i] for i in group]), dtype), strict=True):
            updates[index].copy_(done)
    if processes == 1:
        return
    for sender, groups in enumerate(shares):
        sent = [updates[index] for group in groups for index in group]
        if not sent:
            continue
        flat = torch.cat([update.flatten() for update in sent])
        dist.broadcast(flat, sender)
        for update, part in zip(sent, flat.split([update.numel() for update in sent]), strict=True):
            update.copy_(part.view_as(update))
