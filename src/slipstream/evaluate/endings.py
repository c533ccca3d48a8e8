"""Fit the probability that the speaker has finished: logistic regression on the pause heads and the silence so far."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio import load
from slipstream.engine.turns import VOICE_DB, VoiceLevel
from slipstream.errors import BackendError, SlipstreamError
from slipstream.evaluate.scores import WARMUP_FRAMES, TurnScore, last_word, turn_score
from slipstream.evaluate.transcribe import Hypothesis
from slipstream.model.confidence import LEAST_PROBABILITY, EndingCurve

END_ABOVE = 0.7
"""The threshold that a fitted curve has: the bias is shifted to it."""
MOST_FALSE = 0.05
"""Share of the recordings in which the threshold may end a turn before the last word."""
LEAST_RECORDINGS = 40
SILENCE_SECONDS = 0.8
_AFTER = (0.2, 2.0)
"""Seconds after the speech whose frames are examples of an end."""


@dataclass(frozen=True, slots=True)
class FittedEnding:
    """A curve, and its score above `END_ABOVE` on the recordings that it was fitted to."""

    curve: EndingCurve
    score: TurnScore


@dataclass(frozen=True, slots=True)
class _Frames:
    """One recording: features `[T, F]` and times `[T]` of the frames after the warmup, where its speech ends."""

    features_TF: FloatArray
    times_T: FloatArray
    last_start: float
    end: float


def fit_ending(hypotheses: Sequence[Hypothesis], frame_rate: float, sample_rate: int) -> FittedEnding:
    """Fit the curve of a model with pause heads.

    Frames before the last word of a recording are examples of speech, those after its end examples of an
    end. The bias is then shifted so that `END_ABOVE` ends a turn before the last word in at most `MOST_FALSE` of the
    recordings.

    Args:
        hypotheses: Of recordings of one sentence or a few, on which the model was not trained.
        frame_rate: Frames in a second.
        sample_rate: The model's, in Hz.

    Raises:
        SlipstreamError: There are too few recordings, or the model has no pause heads.
        BackendError: scikit-learn is not installed.
    """
    judged = [one for one in hypotheses if one.recording.text and one.pause_TH.size]
    if len(judged) < LEAST_RECORDINGS:
        raise SlipstreamError(
            f"{len(judged)} recordings with text and pause probabilities: expected at least {LEAST_RECORDINGS}"
        )
    rows = [_frames(one, frame_rate, sample_rate) for one in judged]
    goes_on = np.concatenate([row.features_TF[row.times_T < row.last_start] for row in rows])
    ended = np.concatenate(
        [row.features_TF[(row.times_T >= row.end + _AFTER[0]) & (row.times_T < row.end + _AFTER[1])] for row in rows]
    )
    regression = import_library("sklearn.linear_model").LogisticRegression(C=0.1, max_iter=1000)
    regression.fit(np.concatenate([goes_on, ended]), np.repeat([0, 1], [len(goes_on), len(ended)]))
    weights_F = regression.coef_[0].astype(np.float64)
    threshold = _threshold(rows, weights_F)
    curve = EndingCurve(
        bias=round(math.log(END_ABOVE / (1 - END_ABOVE)) - threshold, 4),
        heads=tuple(weights_F[:-1].round(4).tolist()),
        silence=round(float(weights_F[-1]), 4),
        silence_seconds=SILENCE_SECONDS,
    )
    before_T = np.full(WARMUP_FRAMES, -math.inf)
    odds = [np.concatenate([before_T, row.features_TF @ weights_F]) for row in rows]
    score = turn_score(list(zip(judged, odds, strict=True)), threshold, frame_rate)
    return FittedEnding(curve, replace(score, threshold=END_ABOVE))


def import_library(name: str) -> Any:
    """Import a module that fits curves. Raises `BackendError` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendError("calibration needs scikit-learn: pip install 'slipstream-stt[train]'") from error


def _frames(one: Hypothesis, frame_rate: float, sample_rate: int) -> _Frames:
    size = round(sample_rate / frame_rate)
    frames = len(one.pause_TH)
    samples = load(one.recording.audio, sample_rate)[: frames * size]
    square_T = np.square(np.pad(samples, (0, frames * size - len(samples)))).reshape(frames, size).mean(axis=1)
    level = VoiceLevel()
    silence_T = np.zeros(frames, np.float32)
    quiet = 0
    for frame, square in enumerate(square_T.tolist()):
        quiet = 0 if level.push(square) > VOICE_DB and not level.faint else quiet + 1
        silence_T[frame] = min(1.0, quiet / frame_rate / SILENCE_SECONDS)
    pause_TH = np.clip(one.pause_TH, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    odds_TH = np.log(pause_TH) - np.log1p(-pause_TH)
    features_TF = np.concatenate([odds_TH, silence_T[:, None]], axis=1)[WARMUP_FRAMES:]
    times_T = (np.arange(WARMUP_FRAMES, frames, dtype=np.float32) + 1) / np.float32(frame_rate)
    return _Frames(features_TF, times_T, *last_word(one))


def _threshold(rows: Sequence[_Frames], weights_F: FloatArray) -> float:
    """The lowest log odds, without a bias, that are reached before the last word in `MOST_FALSE` of the recordings."""
    before = [row.features_TF[row.times_T < row.last_start] @ weights_F for row in rows]
    highest = sorted((float(odds.max()) for odds in before if len(odds)), reverse=True)
    allowed = math.floor(MOST_FALSE * len(rows))
    return highest[allowed] if allowed < len(highest) else -math.inf
