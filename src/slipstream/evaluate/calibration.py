"""Fit the calibration of a model: temperature scaling and isotonic regression, compared on speakers not fitted to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slipstream.errors import ConfigError, SlipstreamError
from slipstream.evaluate.confidence import (
    Flags,
    Floats,
    Judged,
    cross_entropy,
    omission_nats,
    reliability,
    word_nats,
)
from slipstream.evaluate.endings import END_ABOVE, import_library
from slipstream.model.confidence import Calibration, Curve, EndingCurve
from slipstream.schema import read_json

LEAST_WORDS = 200
"""Fewer words, or fewer than `LEAST_EACH` right or wrong ones, determine no curve."""
LEAST_EACH = 20
FOLDS = 5
POINTS = 16
"""Points of a curve, at quantiles of the surprisals."""

Fit = Callable[[Floats, Flags], Curve]


@dataclass(frozen=True, slots=True)
class Trial:
    """One method, measured on speakers that it was not fitted to: mean cross entropy in nats, and calibration error."""

    method: str
    nats: float
    ece: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """A calibration, and the trials of the methods for its two curves, the best first."""

    calibration: Calibration
    words: list[Trial]
    omissions: list[Trial]


def fit_calibration(judged: Judged) -> Fitted:
    """Fit both curves, each by the method with the lowest cross entropy on speakers that it was not fitted to.

    Args:
        judged: Words with the confidence that the model gives without a calibration.

    Raises:
        SlipstreamError: There are too few words, or too few right or wrong ones. Without enough missing words, the
            calibration only has no curve for omissions.
        BackendError: scikit-learn is not installed.
    """
    right, wrong = int(judged.correct_N.sum()), int((~judged.correct_N).sum())
    if len(judged.correct_N) < LEAST_WORDS or min(right, wrong) < LEAST_EACH:
        raise SlipstreamError(
            f"{right} right and {wrong} wrong words: expected at least {LEAST_WORDS} words, {LEAST_EACH} of each kind"
        )
    words, word_trials = _best(word_nats(judged.confidence_N), judged.correct_N, judged.speaker_N)
    omissions, omission_trials = None, list[Trial]()
    if min(judged.omitted_N.sum(), (~judged.omitted_N).sum()) >= LEAST_EACH:
        nats_N = omission_nats(judged.omission_N)
        omissions, omission_trials = _best(nats_N, judged.omitted_N, judged.speaker_N, rising=True)
    return Fitted(Calibration(word=words, omission=omissions), word_trials, omission_trials)


def write_calibration(
    calibration: Calibration, config: Path, out: Path | None = None, *, ending: EndingCurve | None = None
) -> Path:
    """Put a calibration into a model's configuration.

    Args:
        calibration: The calibration.
        config: The model's `config.json`.
        out: The file to write, if it is another.
        ending: The curve that ends turns, whose threshold is `END_ABOVE`.

    Returns:
        The file that was written.

    Raises:
        ConfigError: The configuration cannot be read, or its layout has no place for a calibration.
    """
    raw = read_json(config)
    if not isinstance(raw.get("stt_config"), dict):
        raise ConfigError(
            f"{config}: a calibration belongs into stt_config, which this layout lacks: convert the model"
        )
    raw["stt_config"]["confidence"] = calibration.model_dump(mode="json", exclude_none=True)
    if ending is not None:
        raw["stt_config"] |= {"end_of_turn_above": END_ABOVE, "end_of_turn": ending.model_dump(mode="json")}
    path = out or config
    path.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    return path


def _best(
    nats_N: Floats, happened_N: Flags, speaker_N: npt.NDArray[np.int64], *, rising: bool = False
) -> tuple[Curve, list[Trial]]:
    """Fit the better method to all. `rising`: whether events become more likely with the surprisal."""

    methods: dict[str, Fit] = {
        "temperature": lambda nats_N, happened_N: _temperature(nats_N, happened_N, rising),
        "logistic": lambda nats_N, happened_N: _temperature(nats_N, happened_N, rising, offset=True),
        "isotonic": lambda nats_N, happened_N: _isotonic(nats_N, happened_N, rising),
    }
    fold_N = np.random.default_rng(0).permutation(speaker_N.max() + 1)[speaker_N] % FOLDS
    plain_N = _plain(nats_N, rising)
    trials = [Trial("none", cross_entropy(plain_N, happened_N), reliability(plain_N, happened_N).ece)]
    for name, fit in methods.items():
        predicted_N = np.zeros(len(nats_N))
        for fold in np.unique(fold_N):
            inside_N = fold_N == fold
            curve = fit(nats_N[~inside_N], happened_N[~inside_N]) if not inside_N.all() else fit(nats_N, happened_N)
            predicted_N[inside_N] = np.interp(nats_N[inside_N], curve.nats, curve.probability)
        trials.append(Trial(name, cross_entropy(predicted_N, happened_N), reliability(predicted_N, happened_N).ece))
    trials.sort(key=lambda trial: trial.nats)
    best = next(trial.method for trial in trials if trial.method in methods)
    return methods[best](nats_N, happened_N), trials


def _plain(nats_N: Floats, rising: bool) -> Floats:
    """Return the probabilities of a model without a calibration."""
    kept_N: Floats = np.exp(-nats_N)
    return 1 - kept_N if rising else kept_N


def _temperature(nats_N: Floats, happened_N: Flags, rising: bool, offset: bool = False) -> Curve:
    """Divide the log-odds of the plain probability by the temperature with the least entropy.

    `offset`: add a number to them, too (logistic, or Platt, scaling).
    """
    odds_N = _log_odds(_plain(nats_N, rising))

    def scaled(x: Floats, odds: Floats) -> Floats:
        return _sigmoid(np.exp(x[0]) * odds + (x[1] if offset else 0.0))

    def entropy(x: Floats) -> float:
        return cross_entropy(scaled(x, odds_N), happened_N)

    best = import_library("scipy.optimize").minimize(entropy, np.zeros(1 + offset), method="Nelder-Mead").x
    points = _points(nats_N)
    return _curve(points, scaled(best, _log_odds(_plain(points, rising))))


def _isotonic(nats_N: Floats, happened_N: Flags, rising: bool) -> Curve:
    regression = import_library("sklearn.isotonic").IsotonicRegression(increasing=rising, out_of_bounds="clip")
    order_N = np.argsort(nats_N, kind="stable")
    levels_N = regression.fit(nats_N, happened_N).predict(nats_N[order_N])
    # Straight lines between the means of equal parts, as if each had one more word of either kind: none is certain.
    parts = list(zip(*(np.array_split(x_N, POINTS) for x_N in (nats_N[order_N], levels_N)), strict=True))
    middle = [nats.mean() for nats, _ in parts]
    level = np.array([(levels.sum() + 1) / (len(levels) + 2) for _, levels in parts])
    level = np.maximum.accumulate(level) if rising else np.minimum.accumulate(level)
    points = _points(nats_N)
    return _curve(points, np.interp(points, middle, level))


def _points(nats_N: Floats) -> Floats:
    points: Floats = np.unique(np.quantile(nats_N, np.linspace(0, 1, POINTS)).round(4))
    return points


def _curve(points: Floats, probability: Floats) -> Curve:
    return Curve(nats=tuple(points.tolist()), probability=tuple(np.clip(probability, 0, 1).round(4).tolist()))


def _log_odds(probability: Floats) -> Floats:
    clipped = np.clip(probability, 1e-6, 1 - 1e-6)
    odds: Floats = np.log(clipped) - np.log1p(-clipped)
    return odds


def _sigmoid(x: Floats) -> Floats:
    y: Floats = 1 / (1 + np.exp(-x))
    return y
