"""The LM streams as the PyTorch one computes the whole, and positions beyond a million are as good as the first."""

from __future__ import annotations

import math

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core", reason="MLX is not installed: pip install 'slipstream-stt[mlx]'")

from tests.models import lm_config, random_weights  # noqa: E402

from slipstream.backends.mlx.build import build_lm  # noqa: E402
from slipstream.backends.mlx.lm import LM  # noqa: E402
from slipstream.model.config import ConditionerConfig, LMConfig  # noqa: E402
from slipstream.model.names import lm_shapes  # noqa: E402


def make(config: LMConfig, **options) -> LM:
    return build_lm(config, random_weights(lm_shapes(config)), **options)


def tokens(config: LMConfig, frames: int, batch: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Initial tokens, then random ones: text `[B, T]` and audio `[B, K, T]`."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, config.text_vocab, (batch, frames))
    audio = rng.integers(0, config.audio_vocab, (batch, config.num_codebooks, frames))
    text[:, 0], audio[..., 0] = config.text_initial_id, config.audio_initial_id
    return text, audio


def stream(lm: LM, text_BT: np.ndarray, audio_BKT: np.ndarray, start: int = 0, values=None):
    """Text logits `[B, T, V]` and pause logits `[B, T, H, classes]` of a stream whose first position is `start`."""
    state, condition = lm.init_state(len(text_BT)), lm.condition(values or {})
    step = mx.compile(lambda text, audio, state, at: lm(text, audio, state, at, condition))
    logits, pauses = [], []
    for t in range(text_BT.shape[1]):
        at = lm.transformer.locate(np.full(len(text_BT), start + t))
        hidden, state = step(mx.array(text_BT[:, t]), mx.array(audio_BKT[..., t]), state, at)
        mx.eval(hidden, state)
        logits.append(lm.text_logits(hidden).astype(mx.float32))
        pauses.append(lm.pause_logits(hidden).astype(mx.float32))
    return np.array(mx.stack(logits, axis=1)), np.array(mx.stack(pauses, axis=1))


@pytest.mark.parametrize("conditioned", [None, 0.5], ids=["learnt padding", "delay 0.5"])
def test_logits_of_300_steps_are_the_offline_ones(conditioned):
    torch = pytest.importorskip("torch", reason="the offline forward is the PyTorch model's")
    from slipstream.nn.build import build_lm as build_torch_lm

    config = lm_config()
    values = {} if conditioned is None else {"delay": conditioned}
    text, audio = tokens(config, 300)
    reference = build_torch_lm(config, random_weights(lm_shapes(config)))
    with torch.inference_mode():
        hidden, _ = reference(torch.from_numpy(text), torch.from_numpy(audio), None, reference.condition(values))
        logits, pauses = reference.text_logits(hidden).numpy(), reference.pause_logits(hidden).numpy()
    streamed, streamed_pauses = stream(make(config), text, audio, values=values)
    np.testing.assert_allclose(streamed, logits, atol=1e-3)
    np.testing.assert_allclose(streamed_pauses, pauses, atol=1e-3)
    assert logits.std() > 1, "logits that hardly vary would prove little"


@pytest.mark.parametrize("start", [1_000_000, 10**9 + 7])
def test_a_million_frames_in_the_next_logits_are_those_of_a_fresh_stream(start):
    # After layers * context positions the output depends on that window alone.
    config = lm_config()
    lm, (text, audio) = make(config), tokens(config, 60)
    fresh, _ = stream(lm, text, audio)
    late, _ = stream(lm, text, audio, start)
    assert not np.allclose(late[:, 0], fresh[:, 0]), "the empty columns count as seen: the start must differ"
    np.testing.assert_allclose(late[:, 20:], fresh[:, 20:], atol=1e-3)


def test_the_angles_of_large_positions_are_exact():
    config = lm_config()
    at = make(config).transformer.locate(np.array([10**9 + 7]))
    period = config.transformer.max_period ** (2 / config.transformer.head_dim)
    exact = [math.fmod((10**9 + 7) * period**-pair, 2 * math.pi) for pair in range(config.transformer.head_dim // 2)]
    np.testing.assert_allclose(at.cos[0, 0, 0], np.cos(exact), atol=1e-6)
    np.testing.assert_allclose(at.sin[0, 0, 0], np.sin(exact), atol=1e-6)


def test_bfloat16_stays_near_float32():
    config = lm_config()
    text, audio = tokens(config, 30)
    whole, _ = stream(make(config), text, audio)
    rounded, _ = stream(make(config, dtype="bfloat16"), text, audio)
    difference = np.linalg.norm(rounded - whole) / np.linalg.norm(whole)
    assert 1e-4 < difference < 0.05


def test_unknown_conditions_and_values_are_named():
    lm = make(lm_config())
    with pytest.raises(ValueError, match="unknown condition dealy; this model has: delay"):
        lm.condition({"dealy": 1.0})
    with pytest.raises(ValueError, match="expected a number"):
        lm.condition({"delay": "long"})
    language = ConditionerConfig(name="lang", kind="lut", dim=4, num_bins=2, possible_values=("en", "fr"))
    table = make(lm_config(conditioners=(language,)))
    assert not mx.allclose(table.condition({"lang": "en"}), table.condition({"lang": "fr"}))
    with pytest.raises(ValueError, match="expected one of en, fr"):
        table.condition({"lang": "de"})


def test_a_model_without_pause_heads_returns_no_pause_probabilities():
    assert make(lm_config(pause_heads=0)).pause_logits(mx.zeros((2, 42))).shape == (2, 0, 6)
