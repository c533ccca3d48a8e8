"""The arithmetic that all backends share, against formulas and reference values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.models import lm_config

from slipstream.errors import ConfigError
from slipstream.model.config import ConditionerConfig, MelConfig, WhisperConfig
from slipstream.model.numerics import (
    check_conditions,
    codebook_vectors,
    condition_number,
    condition_row,
    condition_sines,
    delayed_sees,
    mel_bands,
    mel_front_end,
    ring_capacity,
    ring_keys,
    rotations,
    sees,
    whisper_bands,
    whisper_positions,
)


def test_mel_bands_peak_at_equal_distances_of_the_scale():
    config = MelConfig(n_mels=20)
    bands = mel_bands(config, 24_000)
    assert bands.shape == (20, 301)
    assert 0.9 < bands.max() <= 1
    centre = bands.argmax(axis=1) * 24_000 / config.window
    mel = 2595 * np.log10(1 + centre / 700)
    low, high = (2595 * math.log10(1 + frequency / 700) for frequency in (20, 8000))
    np.testing.assert_allclose(mel, np.linspace(low, high, 22)[1:-1], atol=25)


def test_whisper_bands_have_unit_area_and_end_at_8_khz():
    bands = whisper_bands(80)
    assert bands.shape == (80, 201)
    np.testing.assert_allclose(bands[30:].sum(axis=1) * 40, 1, atol=0.1)
    assert bands[-1].argmax() * 40 > 7_500
    assert bands[:, -1].max() < 1e-6


@pytest.mark.parametrize(
    ("config", "window", "context"), [(MelConfig(), 600, 360), (WhisperConfig(), 600, 360)], ids=["log-mel", "whisper"]
)
def test_the_fourier_basis_measures_the_power_of_a_tone(config, window: int, context: int):
    front_end = mel_front_end(config, 24_000)
    assert (front_end.fourier.shape[1], front_end.hop, front_end.context) == (window, 240, context)
    tone = np.sin(2 * np.pi * 1000 * np.arange(window) / 24_000).astype(np.float32)
    real, imaginary = np.split(front_end.fourier @ tone, 2)
    assert (real**2 + imaginary**2).argmax() == 25  # bins are 40 Hz apart


def test_positions_are_the_sinusoids_of_whisper():
    positions = whisper_positions(8)
    assert positions.shape == (1500, 8)
    rates = 10_000 ** -np.linspace(0, 1, 4)
    np.testing.assert_allclose(positions[77], [*np.sin(77 * rates), *np.cos(77 * rates)], atol=1e-5)


def test_rotations_of_large_positions_are_exact():
    position, head_dim, max_period = 10**9 + 7, 14, 100_000.0
    exact = [math.fmod(position * max_period ** (-2 * pair / head_dim), 2 * math.pi) for pair in range(7)]
    cos, sin = rotations(np.array([position]), head_dim, max_period)
    np.testing.assert_allclose(cos[0], np.cos(exact), atol=1e-6)
    np.testing.assert_allclose(sin[0], np.sin(exact), atol=1e-6)


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("lookahead", [0, 3])
def test_a_ring_holds_every_key_that_a_query_sees(step: int, lookahead: int):
    """Write positions into a ring as a backend does, and compare what is visible with the definition."""
    context = 5
    capacity = ring_capacity(context, step, lookahead)
    ring = np.full(capacity, -1)
    for start in range(0, 60, step):
        position_T = np.arange(start, start + step)
        ring[position_T % capacity] = position_T
        key_BC = ring_keys(position_T[None, -1:], np.arange(capacity))
        np.testing.assert_array_equal(np.maximum(key_BC[0], -1), ring)
        for query in position_T - lookahead:
            visible = sees(query, key_BC[0], context, lookahead)
            expected = range(query - context + 1, query + lookahead + 1)
            assert set(ring[visible]) == {key for key in expected if 0 <= key <= position_T[-1]}


def test_a_delayed_query_before_the_start_sees_everything():
    config = WhisperConfig(context=5, lookahead=2)
    key_C = ring_keys(np.array([[3]]), np.arange(8))[0]
    first = 2
    assert delayed_sees(np.array([[3]]), key_C, config, first).all()
    assert key_C[delayed_sees(np.array([[4]]), key_C, config, first)[0]].tolist() == [2, 3]


def test_a_number_is_embedded_as_cosines_then_sines():
    config = ConditionerConfig(name="delay", kind="continuous", dim=6, scale_factor=10.0, max_period=100.0)
    angles = 3.0 / np.array([1.0, 10.0, 100.0])
    np.testing.assert_allclose(condition_sines(config, 0.3), [*np.cos(angles), *np.sin(angles)], rtol=1e-6)


def test_unknown_conditions_and_values_are_named():
    with pytest.raises(ConfigError, match="unknown condition dealy; this model has: delay"):
        check_conditions(lm_config(), {"dealy": 1.0})
    with pytest.raises(ConfigError, match="unknown condition x; this model has: none"):
        check_conditions(lm_config(conditioners=()), {"x": 1.0})
    number, vector, table = (
        ConditionerConfig(name="c", kind="continuous", dim=8),
        ConditionerConfig(name="c", kind="tensor", dim=8),
        ConditionerConfig(name="c", kind="lut", dim=8, num_bins=2, possible_values=("en", "fr")),
    )
    with pytest.raises(ConfigError, match="condition c='long': expected a number"):
        condition_number(number, "long")
    with pytest.raises(ConfigError, match=r"condition c=1\.0: expected a vector of 8 numbers"):
        condition_number(vector, 1.0)
    assert condition_row(table, "fr") == 1
    with pytest.raises(ConfigError, match="condition c='de': expected one of en, fr"):
        condition_row(table, "de")


def test_a_codebook_divides_by_its_usage_and_not_by_zero():
    vectors, half_norms = codebook_vectors(np.array([[6.0, 8.0], [1e-5, 0.0]]), np.array([2.0, 0.0]))
    np.testing.assert_allclose(vectors, [[3, 4], [1, 0]], rtol=1e-6)
    np.testing.assert_allclose(half_norms, [12.5, 0.5], rtol=1e-6)
