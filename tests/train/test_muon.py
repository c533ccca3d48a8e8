"""Muon: the same steps as PyTorch's, whatever the batches and the number of processes."""

from __future__ import annotations

import pytest
import torch

from slipstream.train import muon
from slipstream.train.muon import Muon, orthogonalise, share_out

SHAPES = [(24, 8), (8, 24), (24, 8), (16, 16)]


def steps(optimizer: torch.optim.Optimizer, weights: list[torch.Tensor]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.param_groups[0]["lr"] = 0.01
        optimizer.step()
    return weights


def matrices() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon to compare with")
def test_steps_are_those_of_pytorch() -> None:
    theirs, ours = matrices(), matrices()
    steps(torch.optim.Muon(theirs, lr=0.0, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), theirs)
    steps(Muon(ours, weight_decay=0.1), ours)
    for start, a, b in zip(matrices(), theirs, ours, strict=True):
        # PyTorch's products are always in bfloat16, of 8 bits.
        assert (a - b).norm() < 0.03 * (a - start).norm()


def test_a_matrix_gets_the_same_update_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    together = steps(Muon(given := matrices(), weight_decay=0.1), given)
    monkeypatch.setattr(muon, "AT_ONCE", 1)
    alone = steps(Muon(given := matrices(), weight_decay=0.1), given)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)


def test_singular_values_become_about_one() -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(2, 12, 40)).float())
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_processes_share_the_work_evenly_and_do_all_of_it() -> None:
    shapes = [torch.Size(shape) for shape in [(384, 384), (1152, 384), (384, 1024), (2048, 384)] * 6]
    shares = share_out(shapes, 2)
    work = [sum(min(shapes[i]) ** 2 * (2 * max(shapes[i]) + min(shapes[i])) for g in s for i in g) for s in shares]
    assert sorted(i for share in shares for group in share for i in group) == list(range(24))
    assert all(len({shapes[i] for i in group}) == 1 for share in shares for group in share)
    assert max(work) < 1.1 * min(work)


def test_a_parameter_without_gradient_stays() -> None:
    moved, still = matrices()[:2]
    before = still.detach().clone()
    optimizer = Muon([moved, still], weight_decay=0.1)
    optimizer.param_groups[0]["lr"] = 0.1
    moved.grad = torch.ones_like(moved)
    optimizer.step()
    assert torch.equal(still, before)
