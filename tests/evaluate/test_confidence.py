"""Confidence scores that can be counted by hand, and calibrations of answers whose probabilities are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slipstream.data.manifest import Recording
from slipstream.evaluate.confidence import (
    average_precision,
    confidence_scores,
    judge,
    omission_nats,
    reliability,
    word_nats,
    word_reliability,
)
from slipstream.evaluate.transcribe import Hypothesis
from slipstream.events import Word
from slipstream.model.confidence import Calibration, Curve

pytest.importorskip("jiwer")


def _hypothesis(reference: str, *words: tuple[str, float, float]) -> Hypothesis:
    written = [Word(text, i, i + 1, confidence, omission) for i, (text, confidence, omission) in enumerate(words)]
    return Hypothesis(Recording(Path("a.wav"), reference, ()), 3.0, 2.0, written)


def test_each_word_is_right_or_wrong_and_may_follow_missing_ones() -> None:
    hypothesis = _hypothesis("Red, blue green pink.", ("red", 0.9, 0.0), ("grey", 0.2, 0.1), ("pink", 0.8, 0.7))
    judged = judge([hypothesis, _hypothesis("", ("noise", 0.5, 0.0))])
    assert judged.correct_N.tolist() == [True, False, True]
    assert judged.omitted_N.sum() == 1
    assert not judged.omitted_N[0]
    assert judged.confidence_N.tolist() == [0.9, 0.2, 0.8]


def test_the_calibration_error_is_the_distance_of_predicted_and_actual_share() -> None:
    predicted = np.array([0.75] * 4 + [0.25] * 4)
    happened = np.array([True, True, True, False, True, True, False, False])
    scores = reliability(predicted, happened)
    assert scores.ece == pytest.approx(0.125)
    assert [(one.count, one.happened) for one in scores.bins] == [(4, 0.5), (4, 0.75)]
    assert scores.share == 5 / 8


def test_the_normalised_cross_entropy_is_0_for_the_share_itself_and_1_for_certain_and_right() -> None:
    happened = np.array([True, False, True, True])
    assert reliability(np.full(4, 0.75), happened).nce == pytest.approx(0)
    assert reliability(happened.astype(float), happened).nce == pytest.approx(1, abs=1e-4)
    assert reliability(1 - happened.astype(float), happened).nce < -5
    assert reliability(np.full(4, 0.1), np.zeros(4, np.bool_)).nce == 0


def test_average_precision_counts_equal_scores_together() -> None:
    positive = np.array([True, False, True, False])
    assert average_precision(np.array([4.0, 3.0, 2.0, 1.0]), positive) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.ones(4), positive) == pytest.approx(0.5)
    assert average_precision(np.ones(4), np.zeros(4, np.bool_)) is None


def test_errors_are_what_word_confidence_should_find() -> None:
    correct = np.array([True, True, False])
    assert word_reliability(np.array([0.9, 0.8, 0.1]), correct).precision == 1
    assert word_reliability(np.array([0.1, 0.2, 0.9]), correct).precision == pytest.approx(1 / 3)


def test_surprisals_are_the_inverse_of_plain_probabilities() -> None:
    nats = np.array([0.0, 0.5, 9.0])
    np.testing.assert_allclose(word_nats(np.exp(-nats)), nats)
    np.testing.assert_allclose(omission_nats(1 - np.exp(-nats)), nats)


def test_scores_are_with_and_without_the_calibration_of_the_model() -> None:
    hypotheses = [_hypothesis("a b", ("a", 1.0, 0.0), ("x", 1.0, 0.0))]
    half = Curve(nats=(0.0,), probability=(0.5,))
    plain, calibrated = (confidence_scores(hypotheses, one) for one in (None, Calibration(word=half)))
    assert plain is not None
    assert calibrated is not None
    assert plain.words.ece == 0.5
    assert plain.calibrated_words is None
    assert calibrated.words == plain.words
    assert calibrated.calibrated_words is not None
    assert calibrated.calibrated_words.ece == 0
    assert calibrated.calibrated_omissions is None
    assert confidence_scores([_hypothesis("a")], None) is None
