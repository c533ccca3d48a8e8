"""How well confidences fit: word confidence against correct words, and omission against words that are missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slipstream.data.tokenizer import plain_word
from slipstream.evaluate.scores import load_jiwer
from slipstream.evaluate.transcribe import Hypothesis
from slipstream.model.confidence import Calibration

BINS = 10
_LEAST = 1e-6

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Judged:
    """The words of some recordings, and whether each is right.

    Attributes:
        confidence_N: As the model gives it, within [0, 1].
        correct_N: Whether the word is in the reference.
        omission_N: The probability that words are missing before each, as the model gives it.
        omitted_N: Whether words of the reference are missing before it.
        speaker_N: A number for each speaker.
    """

    confidence_N: Floats
    correct_N: Flags
    omission_N: Floats
    omitted_N: Flags
    speaker_N: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bin:
    """Events whose probabilities are close: how many, their mean probability, and the share that happened."""

    count: int
    predicted: float
    happened: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """How well probabilities of some events fit.

    Attributes:
        events: number of events.
        share: of the events that happened.
        ece: expected calibration error: the mean distance of predicted and actual share in bins of equal width.
        nce: normalised cross entropy: 1 for certain and right, 0 for no better than `share` itself, below 0 for worse;
            0 where all or no events happened.
        precision: average precision (area under precision and recall) of what the probability should find: for words
            the errors, for omissions the missing words; None if there are none. A random order has that of their share.
        bins: of equal width, without empty ones.
    """

    events: int
    share: float
    ece: float
    nce: float
    precision: float | None
    bins: list[Bin]


@dataclass(frozen=True, slots=True)
class ConfidenceScores:
    """Of words and of omissions: as the model gives them, and calibrated; None where it has no such calibration."""

    words: Reliability
    calibrated_words: Reliability | None
    omissions: Reliability
    calibrated_omissions: Reliability | None


def judge(hypotheses: Iterable[Hypothesis]) -> Judged:
    """Compare each written word with the reference, in the alignment with the fewest errors."""
    confidence: list[float] = []
    correct: list[bool] = []
    omission: list[float] = []
    omitted: list[bool] = []
    speakers: dict[str, int] = {}
    speaker: list[int] = []
    for one in hypotheses:
        reference = [word for text in one.recording.text.split() if (word := plain_word(text))]
        if not reference or not one.words:
            continue
        right, after_missing = _align(reference, [plain_word(word.text) or "-" for word in one.words])
        confidence += [word.confidence for word in one.words]
        omission += [word.omission for word in one.words]
        correct += right
        omitted += after_missing
        number = speakers.setdefault(f"{one.recording.dataset} {one.recording.speaker}", len(speakers))
        speaker += [number] * len(one.words)
    return Judged(np.array(confidence), np.array(correct), np.array(omission), np.array(omitted), np.array(speaker))


def confidence_scores(hypotheses: Iterable[Hypothesis], calibration: Calibration | None) -> ConfidenceScores | None:
    """Score the confidences of a model without its calibration, and with it; None if nothing can be compared."""
    judged = judge(hypotheses)
    if not len(judged.confidence_N):
        return None
    words = omissions = None
    if calibration is not None:
        nats_N = word_nats(judged.confidence_N)
        words = word_reliability(np.array([calibration.word.at(nats) for nats in nats_N.tolist()]), judged.correct_N)
        if calibration.omission is not None:
            nats_N = omission_nats(judged.omission_N)
            calibrated_N = np.array([calibration.omission.at(nats) for nats in nats_N.tolist()])
            omissions = reliability(calibrated_N, judged.omitted_N)
    return ConfidenceScores(
        word_reliability(judged.confidence_N, judged.correct_N),
        words,
        reliability(judged.omission_N, judged.omitted_N),
        omissions,
    )


def word_nats(confidence_N: Floats) -> Floats:
    """Return the surprisals of words that have these confidences without a calibration."""
    nats_N: Floats = -np.log(np.maximum(confidence_N, 1e-300))
    return nats_N


def omission_nats(omission_N: Floats) -> Floats:
    """Return the surprisals of the pads that have these omissions without a calibration."""
    nats_N: Floats = -np.log1p(-np.minimum(omission_N, 1 - 1e-12))
    return nats_N


def reliability(predicted_N: Floats, happened_N: Flags) -> Reliability:
    """Score probabilities of events; `precision` is that of what happened."""
    bin_N = np.minimum((predicted_N * BINS).astype(int), BINS - 1)
    bins = [
        Bin(int(chosen_N.sum()), float(predicted_N[chosen_N].mean()), float(happened_N[chosen_N].mean()))
        for chosen_N in (bin_N == number for number in range(BINS))
        if chosen_N.any()
    ]
    share = float(happened_N.mean())
    ece = sum(one.count * abs(one.predicted - one.happened) for one in bins) / len(predicted_N)
    entropy = cross_entropy(np.full(len(predicted_N), share), happened_N)
    nce = (entropy - cross_entropy(predicted_N, happened_N)) / entropy if 0 < share < 1 else 0.0
    return Reliability(len(predicted_N), share, ece, nce, average_precision(predicted_N, happened_N), bins)


def word_reliability(confidence_N: Floats, correct_N: Flags) -> Reliability:
    """Score word confidences; `precision` is that of finding the errors."""
    scores = reliability(confidence_N, correct_N)
    precision = average_precision(-confidence_N, ~correct_N)
    return Reliability(scores.events, scores.share, scores.ece, scores.nce, precision, scores.bins)


def cross_entropy(predicted_N: Floats, happened_N: Flags) -> float:
    """Return the mean surprise at what happened, in nats; probabilities are kept `1e-6` away from 0 and 1."""
    sure_N = np.clip(np.where(happened_N, predicted_N, 1 - predicted_N), _LEAST, 1 - _LEAST)
    return float(-np.log(sure_N).mean())


def average_precision(score_N: Floats, positive_N: Flags) -> float | None:
    """Return the mean precision at the rank of each positive, with those of equal scores at the last of their ranks.

    None without positives.
    """
    if not positive_N.any():
        return None
    order_N = np.argsort(-score_N, kind="stable")
    sorted_N = score_N[order_N]
    last_N = np.append(np.flatnonzero(np.diff(sorted_N)), len(sorted_N) - 1)
    found_N = np.cumsum(positive_N[order_N])[last_N]
    precision_N = found_N / (last_N + 1)
    return float((np.diff(found_N, prepend=0) * precision_N).sum() / positive_N.sum())


def _align(reference: Sequence[str], written: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """For each written word, whether it is right, and whether words of the reference are missing before it."""
    output = load_jiwer().process_words([" ".join(reference)], [" ".join(written)])
    right, missing = [False] * len(written), [False] * (len(written) + 1)
    for chunk in output.alignments[0]:
        if chunk.type == "equal":
            right[chunk.hyp_start_idx : chunk.hyp_end_idx] = [True] * (chunk.hyp_end_idx - chunk.hyp_start_idx)
        elif chunk.type == "delete":
            missing[chunk.hyp_start_idx] = True
    return right, missing[:-1]
