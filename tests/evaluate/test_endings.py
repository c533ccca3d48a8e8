from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slipstream.data.manifest import Recording
from slipstream.data.wave import write_wave
from slipstream.errors import SlipstreamError
from slipstream.evaluate.endings import END_ABOVE, fit_ending
from slipstream.evaluate.transcribe import Hypothesis

RATE, FRAME = 8000, 640  # 12.5 frames a second


def spoken(folder: Path, number: int) -> Hypothesis:
    """2 s of noise with 0.2 s of silence in it; the heads rise at the end, and in part at the silence."""
    rng = np.random.default_rng(number)
    samples = rng.normal(0, 0.2, 2 * RATE).astype(np.float32)
    samples[RATE : RATE + RATE // 5] = 0
    path = folder / f"{number}.wav"
    write_wave(path, samples, RATE)
    pause_TH = np.full((75, 2), 0.1, np.float32)
    pause_TH[13:16] = rng.uniform(0.1, 0.6)
    pause_TH[27:] = rng.uniform(0.7, 0.9)
    return Hypothesis(Recording(path, "some words"), 2.0, 2.0, pause_TH=pause_TH)


def test_the_curve_ends_turns_by_heads_and_silence_with_few_false_alarms(tmp_path: Path) -> None:
    fitted = fit_ending([spoken(tmp_path, number) for number in range(60)], 12.5, RATE)
    assert fitted.score.found == 1
    assert fitted.score.false_alarms <= 0.05
    assert fitted.score.median is not None
    assert 0 < fitted.score.median < 0.5
    curve = fitted.curve
    assert curve.silence > 0
    assert curve.at((0.9, 0.9), 0.4) > END_ABOVE > curve.at((0.1, 0.1), 0.2)


def test_too_few_recordings_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SlipstreamError, match="3 recordings with text and pause probabilities: expected at least 40"):
        fit_ending([spoken(tmp_path, number) for number in range(3)], 12.5, RATE)
