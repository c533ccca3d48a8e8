"""The optimiser: its groups of weights, their rates and decay, and its state in a checkpoint."""

from __future__ import annotations

import pytest
import torch

from slipstream.errors import CheckpointError
from slipstream.train.optim import AGE_RATE, Optimizer, rate_of


def test_norms_do_not_decay_and_the_encoder_has_its_own_rate() -> None:
    masters = {
        name: torch.ones(*shape) for name, shape in {"codec.encoder.a": (2, 2), "b": (2, 2), "norm": (2,)}.items()
    }
    optimizer = Optimizer(masters, "adamw", weight_decay=0.5, betas=(0.9, 0.98), slow_encoder=True)
    for master in masters.values():
        master.grad = torch.zeros_like(master)
    optimizer.step(0.1, 1.0, encoder_rate=0.1)
    assert float(masters["norm"][0]) == 1.0
    assert float(masters["b"][0, 0]) == pytest.approx(1 - 0.1 * 0.5)
    assert float(masters["codec.encoder.a"][0, 0]) == pytest.approx(1 - 0.01 * 0.5)


def test_patterns_give_weights_separate_rates() -> None:
    names = ("lm.layers.0.ffn", "lm.layers.0.cross", "codec.encoder.a", "lm.layers.0.age")
    rates = {"lm.*": 0.5, "*.cross": 0.25}
    for kind in ("adamw", "muon"):
        masters = {name: torch.ones(2, 2) for name in names}
        optimizer = Optimizer(masters, kind, weight_decay=0.5, betas=(0.9, 0.98), rates=rates)
        for master in masters.values():
            master.grad = torch.zeros_like(master)
        optimizer.step(0.1, 1.0)
        moved = [1 - float(masters[name][0, 0]) for name in names]
        assert moved == pytest.approx([0.025, 0.0125, 0.05, 0], abs=1e-6)
    assert [rate_of(name, rates) for name in names] == [0.5, 0.25, 1, 0.5]
    assert rate_of("lm.layers.0.age", {}) == AGE_RATE


def test_moments_follow_the_names_of_weights_to_other_rates() -> None:
    def optimizer(rates: dict[str, float], names: str = "abc") -> Optimizer:
        masters = {name: torch.ones(ord(name) - 95, 2) for name in names}
        for master in masters.values():
            master.grad = torch.full_like(master, 0.1 * len(master))
        return Optimizer(masters, "adamw", weight_decay=0.0, betas=(0.9, 0.98), rates=rates)

    first = optimizer({})
    first.step(0.1, 100.0)
    states = first.state_dict()
    again = optimizer({"b": 0.5}, "cba")
    again.load_state_dict(states)
    (part,) = again.parts
    assert {group["factor"] for group in part.param_groups} == {0.5, 1.0}
    for name, weight in again.masters.items():
        torch.testing.assert_close(part.state[weight]["exp_avg"], torch.full_like(weight, 0.01 * len(weight)))
        assert len(weight) == ord(name) - 95
    for group in states[0]["param_groups"]:  # as older versions wrote them
        del group["names"]
    optimizer({}).load_state_dict(states)
    for other in (optimizer({"b": 0.5}), optimizer({}, "cba")):
        with pytest.raises(CheckpointError, match="kept the optimiser's state in another order"):
            other.load_state_dict(states)


def test_muon_resumes_when_the_encoder_gets_another_rate() -> None:
    def optimizer(slow_encoder: bool) -> Optimizer:
        masters = {name: torch.ones(2, 2) for name in ("codec.encoder.layers.0.a", "lm.layers.0.a", "lm.b")}
        for master in masters.values():
            master.grad = torch.full_like(master, 0.1)
        return Optimizer(masters, "muon", weight_decay=0.0, betas=(0.9, 0.98), slow_encoder=slow_encoder)

    for before in (True, False):
        first, again = optimizer(before), optimizer(not before)
        first.step(0.1, 100.0)
        again.load_state_dict(first.state_dict())
        again.step(0.1, 100.0)
        assert again.parts[1].state[again.masters["lm.b"]]["step"] == 2
