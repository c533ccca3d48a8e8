from __future__ import annotations

import numpy as np

from slipstream.backends.onnx.sampling import logprob, pick
from slipstream.model.config import SamplingConfig


def test_draws_follow_the_probabilities_of_the_top_k():
    logits = np.array([2.0, 1.0, 0.0, -1.0, -2.0], np.float32)
    sampling = SamplingConfig(temperature=2.0, top_k=3)
    drawn = pick(np.tile(logits, (20_000, 1)), sampling, np.random.default_rng(0))
    expected = np.append(np.exp(logits[:3] / 2) / np.exp(logits[:3] / 2).sum(), [0, 0])
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 20_000, expected, atol=0.012)


def test_temperature_zero_and_top_1_give_the_most_likely_token():
    logits = np.random.default_rng(0).standard_normal((50, 9)).astype(np.float32)
    for sampling in (SamplingConfig(), SamplingConfig(temperature=3.0, top_k=1)):
        np.testing.assert_array_equal(pick(logits, sampling, np.random.default_rng(1)), logits.argmax(axis=1))


def test_logprob_is_that_of_the_softmax_even_for_huge_logits():
    logits = np.array([[0.0, np.log(3.0)], [1000.0, -1000.0]], np.float32)
    np.testing.assert_allclose(logprob(logits, np.array([1, 0])), [np.log(0.75), 0.0], atol=1e-6)
