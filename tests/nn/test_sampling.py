"""Picking a token: greedy, or a draw with the right frequencies from the right tokens."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from slipstream.model.config import SamplingConfig  # noqa: E402
from slipstream.nn.sampling import pick_token  # noqa: E402

LOGITS = torch.tensor([2.0, -1.0, 1.0, 0.5, -3.0])
DRAWS = 20_000


def frequencies(**sampling) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    tokens = pick_token(LOGITS.expand(DRAWS, -1), SamplingConfig(**sampling), generator)
    return torch.bincount(tokens, minlength=len(LOGITS)) / DRAWS


def test_temperature_zero_is_the_best_token():
    assert frequencies(temperature=0.0, top_k=3)[0] == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_that_temperature(temperature):
    expected = (LOGITS / temperature).softmax(dim=0)
    torch.testing.assert_close(frequencies(temperature=temperature), expected, atol=0.015, rtol=0)


def test_top_k_draws_from_the_best_k_alone():
    expected = torch.zeros_like(LOGITS)
    expected[[0, 2]] = LOGITS[[0, 2]].softmax(dim=0)
    torch.testing.assert_close(frequencies(temperature=1.0, top_k=2), expected, atol=0.015, rtol=0)
    assert frequencies(temperature=1.0, top_k=100).gt(0).sum() >= 4, "a top_k beyond the vocabulary means all of it"


def test_a_generator_makes_draws_repeatable():
    logits = torch.randn(50, 30)
    draws = [pick_token(logits, SamplingConfig(temperature=1.0), torch.Generator().manual_seed(s)) for s in (7, 7, 8)]
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])
