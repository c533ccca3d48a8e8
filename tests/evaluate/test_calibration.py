"""Calibrations fitted to answers whose probabilities are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from slipstream.errors import ConfigError, SlipstreamError
from slipstream.evaluate.calibration import fit_calibration, write_calibration
from slipstream.evaluate.confidence import Floats, Judged
from slipstream.model.confidence import Calibration, Curve, EndingCurve


def _judged(probability_of: Floats, confidence: Floats, seed: int = 0) -> Judged:
    rng = np.random.default_rng(seed)
    words = len(confidence)
    correct = rng.random(words) < probability_of
    return Judged(confidence, correct, 1 - confidence, ~correct, np.arange(words) % 40)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_the_fitted_curve_is_the_known_probability(method: str) -> None:
    pytest.importorskip("sklearn")
    confidence = np.random.default_rng(1).uniform(0.01, 0.99, 6000)
    if method == "temperature":  # the log-odds divided by 2
        odds = np.log(confidence / (1 - confidence)) / 2
        probability = 1 / (1 + np.exp(-odds))
    else:  # a step, which no temperature makes
        probability = np.where(confidence > 0.5, 0.7, 0.2)
    fitted = fit_calibration(_judged(probability, confidence))
    assert fitted.words[0].method == method
    assert fitted.words[-1].method == "none"
    # Far from the step, which is between two points of the curve.
    apart = abs(confidence - 0.5) > 0.15
    found = np.array([fitted.calibration.word.at(nats) for nats in -np.log(confidence)])
    assert abs(found - probability)[apart].mean() < 0.04
    omission = fitted.calibration.omission
    assert omission is not None
    assert omission.at(0.05) < 0.4 < 0.7 < omission.at(4.0)


def test_too_few_words_determine_no_curve() -> None:
    with pytest.raises(SlipstreamError, match="expected at least 200 words, 20 of each kind"):
        fit_calibration(_judged(np.full(50, 0.5), np.full(50, 0.5)))
    with pytest.raises(SlipstreamError, match="300 right and 0 wrong words"):
        fit_calibration(_judged(np.ones(300), np.full(300, 0.5)))


def test_a_calibration_is_added_to_the_configuration_of_a_model(tmp_path: Path) -> None:
    config, calibration = tmp_path / "config.json", Calibration(word=Curve(nats=(0.0,), probability=(0.5,)))
    config.write_text(json.dumps({"dim": 8, "stt_config": {"delay_frames": 6}}))
    assert write_calibration(calibration, config, tmp_path / "other.json") == tmp_path / "other.json"
    assert "confidence" not in config.read_text()
    assert write_calibration(calibration, config) == config
    expected = {"delay_frames": 6, "confidence": {"word": {"nats": [0.0], "probability": [0.5]}}}
    assert json.loads(config.read_text()) == {"dim": 8, "stt_config": expected}


def test_the_curve_of_turns_is_written_with_its_threshold(tmp_path: Path) -> None:
    config, calibration = tmp_path / "config.json", Calibration(word=Curve(nats=(0.0,), probability=(0.5,)))
    config.write_text(json.dumps({"stt_config": {"delay_frames": 6, "end_of_turn_above": 0.3}}))
    curve = EndingCurve(bias=0.5, heads=(1.0, 2.0), silence=3.0, silence_seconds=0.8)
    write_calibration(calibration, config, ending=curve)
    written = json.loads(config.read_text())["stt_config"]
    assert (written["delay_frames"], written["end_of_turn_above"]) == (6, 0.7)
    assert EndingCurve(**written["end_of_turn"]) == curve


def test_a_layout_without_a_place_for_a_calibration_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")
    with pytest.raises(ConfigError, match="belongs into stt_config, which this layout lacks: convert the model"):
        write_calibration(Calibration(word=Curve(nats=(0.0,), probability=(0.5,))), config)
