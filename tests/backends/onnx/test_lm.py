"""The LM's graph: positions without end, caches in half precision, conditions."""

from __future__ import annotations

import numpy as np
import pytest
from tests.models import lm_config, random_weights

from slipstream.backends.onnx.inference import open_session
from slipstream.backends.onnx.lm import condition_vector, lm_model
from slipstream.backends.onnx.text_streams import LMStreams
from slipstream.backends.onnx.transformer import Quantize
from slipstream.errors import ConfigError
from slipstream.model.config import ConditionerConfig, LMConfig
from slipstream.model.names import lm_shapes


def streams(config: LMConfig, slots: int = 1, quantize: Quantize = None) -> LMStreams:
    model = lm_model(config, random_weights(lm_shapes(config)), {}, quantize=quantize)
    codes = np.zeros((slots, config.num_codebooks), np.int64)
    return LMStreams(config, open_session(model, threads=1), slots, codes)


def feed(lm: LMStreams, start: int, steps: int, seed: int = 0) -> np.ndarray:
    """Logits `[steps, V]` of slot 0 for the same random tokens, at positions from `start` on."""
    rng = np.random.default_rng(seed)
    out = []
    for position in range(start, start + steps):
        lm.text_B[:] = rng.integers(0, lm.config.text_vocab)
        lm.codes_BK[:] = rng.integers(0, lm.config.audio_vocab, lm.config.num_codebooks)
        lm.step(np.full(len(lm.text_B), position), np.ones(len(lm.text_B), bool))
        out.append(lm.logits_BV[0].copy())
    return np.stack(out)


def test_a_window_at_position_a_million_gives_the_results_of_the_start():
    config = lm_config()
    window = config.transformer.context * config.transformer.num_layers  # all that a step can know of
    early = feed(streams(config), 0, window + 20)
    late = feed(streams(config), 1_000_000, window + 20)
    np.testing.assert_allclose(early[window:], late[window:], atol=2e-4)
    assert np.abs(early[0] - late[0]).max() > 0.01, "the first step at a million attends to an empty window's zeros"


@pytest.mark.parametrize(("quantize", "at_least"), [("int8", 0.999), ("int4", 0.97)])
def test_quantised_logits_point_the_same_way(quantize: Quantize, at_least: float):
    config = lm_config()
    exact, rounded = feed(streams(config), 0, 30), feed(streams(config, quantize=quantize), 0, 30)
    cosine = (exact * rounded).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(rounded, axis=-1)
    assert cosine.mean() > at_least


def test_a_context_of_one_sees_only_itself():
    config = lm_config()
    config = config.model_copy(update={"transformer": config.transformer.model_copy(update={"context": 1})})
    once, again = feed(streams(config), 0, 1, seed=3), feed(streams(config), 5, 1, seed=3)
    np.testing.assert_allclose(once, again, atol=1e-5)


LUT = ConditionerConfig(name="mood", kind="lut", dim=6, num_bins=3, possible_values=("calm", "cross"))


def test_conditions_equal_the_torch_models():
    torch = pytest.importorskip("torch")
    from slipstream.nn.build import build_lm

    config = lm_config(conditioners=(*lm_config().conditioners, LUT))
    weights = random_weights(lm_shapes(config))
    for values in ({}, {"delay": 2.5}, {"delay": 0.5, "mood": "cross"}):
        with torch.inference_mode():
            expected = build_lm(config, weights).condition(values)[0].numpy()
        np.testing.assert_allclose(condition_vector(config, weights, values), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"deley": 1.0}, "unknown condition deley; this model has: delay, mood"),
        ({"mood": "glad"}, "mood='glad': expected one of calm, cross"),
        ({"delay": "long"}, "delay='long': expected a number"),
    ],
)
def test_a_condition_that_cannot_be_used_is_named(values: dict, message: str):
    config = lm_config(conditioners=(*lm_config().conditioners, LUT))
    with pytest.raises(ConfigError, match=message):
        condition_vector(config, random_weights(lm_shapes(config)), values)
