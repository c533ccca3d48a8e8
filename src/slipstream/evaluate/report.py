"""Everything measured of a model, as JSON for programs and as a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slipstream.evaluate.confidence import ConfidenceScores, Reliability, confidence_scores
from slipstream.evaluate.endurance import LongStream
from slipstream.evaluate.scores import (
    ErrorRate,
    Group,
    TurnScore,
    WordTimes,
    ends_of_turn,
    error_rates,
    groups,
    word_times,
)
from slipstream.evaluate.transcribe import Hypothesis, Speed
from slipstream.model.confidence import Calibration

WORST = 40
"""Number of recordings with the most errors that are listed with their texts."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything measured of one model on one manifest.

    Attributes:
        left_out: number of recordings that cannot be read.
        beam: hypotheses that the search kept; None for another recogniser.
        delay: how far the text is behind the audio, in seconds; None for another recogniser.
        turns: ends of turn by each pause head alone.
        endings: ends of turn by the probability that the model's turns use.
    """

    model: str
    manifest: str
    left_out: int
    beam: int | None
    delay: float | None
    overall: Group
    datasets: dict[str, Group]
    languages: dict[str, Group]
    speakers: dict[str, Group]
    times: WordTimes
    turns: dict[int, list[TurnScore]]
    endings: list[TurnScore]
    confidence: ConfidenceScores | None
    speed: Speed
    worst: list[dict[str, Any]]


def evaluate(
    hypotheses: Sequence[Hypothesis],
    speed: Speed,
    *,
    model: str,
    manifest: str,
    frame_rate: float,
    left_out: int = 0,
    beam: int | None = None,
    delay: float | None = None,
    calibration: Calibration | None = None,
) -> Evaluation:
    """Compute all scores. Each pause head is scored on its own, by its number.

    Args:
        beam: hypotheses that the search kept.
        delay: how far the text is behind the audio, in seconds.
        calibration: that of the model, which the confidences of the hypotheses do not have.
    """
    heads = max((one.pause_TH.shape[1] for one in hypotheses if one.pause_TH.size), default=0)

    def by(key: Callable[[Hypothesis], str]) -> dict[str, Group]:
        return {name: error_rates(part) for name, part in groups(hypotheses, key).items()}

    return Evaluation(
        model=model,
        manifest=manifest,
        left_out=left_out,
        beam=beam,
        delay=delay,
        overall=error_rates(hypotheses),
        datasets=by(lambda one: one.recording.dataset),
        languages=by(lambda one: one.recording.lang),
        speakers=by(lambda one: one.recording.speaker),
        times=word_times(hypotheses),
        turns={head: ends_of_turn(hypotheses, frame_rate, head) for head in range(heads)},
        endings=ends_of_turn(hypotheses, frame_rate, None),
        confidence=confidence_scores(hypotheses, calibration),
        speed=speed,
        worst=_worst(hypotheses),
    )


def to_json(
    evaluation: Evaluation,
    *,
    baseline: Evaluation | None = None,
    stream: LongStream | None = None,
    invented_words: dict[str, float] | None = None,
) -> str:
    """Write everything as one JSON object.

    Each group of recordings has its `wer` and `cer`, with `rate`, `low` and `high` (the 95 % interval), and the counts
    in `words` and `characters`.

    Args:
        baseline: another recogniser on the same recordings.
        stream: all recordings as one stream, with a `wer` for each tenth.
        invented_words: words per hour, by the sound in which they were written.
    """
    body = _fields(evaluation)
    if baseline is not None:
        body["baseline"] = _fields(baseline)
    if stream is not None:
        body["stream"] = {"seconds": stream.seconds, "wer": [_interval(part) for part in stream.parts]}
    if invented_words is not None:
        body["invented_words_an_hour"] = invented_words
    return json.dumps(body, indent=2, ensure_ascii=False)


def _fields(evaluation: Evaluation) -> dict[str, Any]:
    fields = asdict(evaluation) | {"overall": _group_fields(evaluation.overall)}
    for name in ("datasets", "languages", "speakers"):
        fields[name] = {key: _group_fields(group) for key, group in getattr(evaluation, name).items()}
    return fields


def _group_fields(group: Group) -> dict[str, Any]:
    rates = {"wer": _interval(group.words), "cer": _interval(group.characters)}
    counts = {name: asdict(rate) for name, rate in (("words", group.words), ("characters", group.characters))}
    for fields in counts.values():
        del fields["low"], fields["high"]
    return rates | counts


def _interval(rate: ErrorRate) -> dict[str, float]:
    return {"rate": rate.rate, "low": rate.low, "high": rate.high}


def to_text(evaluation: Evaluation) -> str:
    """Write a few lines for the terminal."""
    lines = [f"{'':24s} {'WER':>22s} {'CER':>8s} {'sub':>6s} {'del':>6s} {'ins':>6s} {'words':>7s} {'clips':>6s}"]
    lines += [_line("all", evaluation.overall)]
    for part in (evaluation.datasets, evaluation.languages):
        if len(part) > 1:
            lines += [_line(name, group) for name, group in part.items()]
    if evaluation.left_out:
        lines.append(left_out_note(evaluation))
    times = evaluation.times
    if times.start_error is not None and times.start_shift is not None and times.delay is not None:
        near = ", ".join(f"{share:.0%} within {1000 * t:.0f} ms" for t, share in times.within.items())
        f1 = ", ".join(f"F1 at {1000 * t:.0f} ms {value:.2f}" for t, value in times.f1.items())
        lines.append(
            f"word starts: off by {1000 * times.start_error:.0f} ms on average, {f1}; "
            f"written {times.delay:.2f} s after the word's end"
        )
        lines.append(
            f"word starts of the {times.matched} correct words: median error {1000 * times.start_shift:+.0f} ms, {near}"
        )
    lines += [turn_line(turn) for turn in evaluation.endings]
    if evaluation.confidence is not None:
        lines += _confidence_lines(evaluation.confidence)
    speed = evaluation.speed
    beam = f" with a beam of {evaluation.beam}" if evaluation.beam else ""
    delay = f", text delay {evaluation.delay:g} s" if evaluation.delay is not None else ""
    lines.append(
        f"{speed.audio:.0f} s of audio in {speed.taken:.0f} s, {speed.streams} concurrent streams{beam}{delay}: "
        f"{speed.times_real_time:.1f} x real time"
    )
    return "\n".join(lines)


def turn_line(turn: TurnScore) -> str:
    """Write the score of one threshold as a line."""
    median = "never" if turn.median is None else f"{turn.median:.2f} s after the speech (median)"
    return (
        f"end of turn above {turn.threshold:.2f}: found in {turn.found:.0%}, {median}; "
        f"false alarms in {turn.false_alarms:.1%}"
    )


def _confidence_lines(scores: ConfidenceScores) -> list[str]:
    rows = [
        ("word confidence", "errors", scores.words),
        ("  calibrated", "errors", scores.calibrated_words),
        ("omissions", "missing words", scores.omissions),
        ("  calibrated", "missing words", scores.calibrated_omissions),
    ]
    return [_reliability_line(name, what, row) for name, what, row in rows if row is not None]


def _reliability_line(name: str, what: str, row: Reliability) -> str:
    positives = 1 - row.share if what == "errors" else row.share
    found = "none" if row.precision is None else f"{row.precision:.3f} (random order: {positives:.3f})"
    return f"{name:24s} ECE {row.ece:.1%}, NCE {row.nce:.3f}, AUC-PR of {what} {found}, {row.events} words"


def left_out_note(evaluation: Evaluation) -> str:
    """How many recordings were left out, as a sentence."""
    return f"recordings left out, as their audio cannot be read: {evaluation.left_out}"


def _line(name: str, group: Group) -> str:
    words = group.words
    interval = f"{words.rate:.1%} ({words.low:.1%} to {words.high:.1%})"
    return (
        f"{name[:24]:24s} {interval:>22s} {group.characters.rate:8.1%} {words.substitutions:6d} "
        f"{words.deletions:6d} {words.insertions:6d} {words.reference:7d} {words.recordings:6d}"
    )


def _worst(hypotheses: Sequence[Hypothesis]) -> list[dict[str, Any]]:
    rated = [(one, error_rates([one]).words.rate) for one in hypotheses if one.recording.text]
    rated.sort(key=lambda pair: -pair[1])
    return [
        {"audio": one.recording.audio.name, "wer": rate, "said": one.recording.text, "written": one.text}
        for one, rate in rated[:WORST]
    ]
