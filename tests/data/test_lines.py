"""Telephone codecs keep speech in time and lose what they lose."""

from __future__ import annotations

import numpy as np
import pytest

from slipstream.arrays import FloatArray
from slipstream.data.augment import WaveAugment
from slipstream.data.lines import LINES, LineName, through_line

RATE = 24_000


def chirps() -> FloatArray:
    t = np.arange(RATE) / RATE
    phase = np.cumsum(300 + 250 * np.sin(2 * np.pi * 1.5 * t)) / RATE
    return (0.4 * np.sin(2 * np.pi * phase) * (np.sin(2 * np.pi * 3 * t) > 0)).astype(np.float32)


@pytest.mark.parametrize("name", LINES)
def test_a_line_keeps_the_time_of_speech(name: LineName) -> None:
    samples = chirps()
    heard = through_line(samples, RATE, name, np.random.default_rng(0))
    assert heard.shape == samples.shape
    assert heard.dtype == np.float32
    assert np.corrcoef(samples, heard)[0, 1] > 0.6


def test_a_narrow_line_loses_high_frequencies() -> None:
    t = np.arange(RATE) / RATE
    high = np.sin(2 * np.pi * 6000 * t).astype(np.float32) * np.float32(0.3)
    narrow, wide = (through_line(high, RATE, name, np.random.default_rng(0)) for name in ("mulaw", "g722"))
    assert np.square(narrow).mean() < 0.01 * np.square(high).mean()
    assert np.square(wide).mean() > 0.3 * np.square(high).mean()


def test_an_augmentation_draws_its_lines() -> None:
    samples = chirps()
    line = WaveAugment(reverb=0, noise=0, telephone=1, clip=0, gain=0, lines=("mulaw",))
    expected = through_line(samples, RATE, "mulaw", np.random.default_rng(0))
    assert np.array_equal(line(samples, RATE, np.random.default_rng(1)), expected)
