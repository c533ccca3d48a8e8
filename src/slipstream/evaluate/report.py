"""An evaluation as JSON for programs, a table for the terminal, and one HTML page with plots for people."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slipstream.evaluate.endurance import LongStream
from slipstream.evaluate.scores import (
    EndOfTurn,
    ErrorRate,
    Group,
    WordTimes,
    ends_of_turn,
    error_rates,
    groups,
    word_times,
)
from slipstream.evaluate.transcribe import Heard, Speed

WORST = 40
"""Recordings with the most errors that the page shows in full."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that was measured of one model on one manifest. `left_out`: recordings whose audio cannot be read."""

    model: str
    manifest: str
    left_out: int
    overall: Group
    datasets: dict[str, Group]
    languages: dict[str, Group]
    speakers: dict[str, Group]
    times: WordTimes
    turns: dict[int, list[EndOfTurn]]
    speed: Speed
    worst: list[dict[str, Any]]


def evaluate(
    heard: Sequence[Heard], speed: Speed, *, model: str, manifest: str, frame_rate: float, left_out: int = 0
) -> Evaluation:
    """Everything that can be said of what was heard. Pause heads are judged one by one, by their number."""
    heads = max((one.pause_TH.shape[1] for one in heard if one.pause_TH.size), default=0)

    def by(key: Callable[[Heard], str]) -> dict[str, Group]:
        return {name: error_rates(part) for name, part in groups(heard, key).items()}

    return Evaluation(
        model=model,
        manifest=manifest,
        left_out=left_out,
        overall=error_rates(heard),
        datasets=by(lambda one: one.recording.dataset),
        languages=by(lambda one: one.recording.lang),
        speakers=by(lambda one: one.recording.speaker),
        times=word_times(heard),
        turns={head: ends_of_turn(heard, frame_rate, head) for head in range(heads)},
        speed=speed,
        worst=_worst(heard),
    )


def to_json(
    evaluation: Evaluation,
    *,
    baseline: Evaluation | None = None,
    stream: LongStream | None = None,
    invented_words: dict[str, float] | None = None,
) -> str:
    """Everything, as one JSON object.

    Each group of recordings has its `wer` and `cer`, with `rate`, `low` and `high` (the interval of 95 %), and the
    counts behind them in `words` and `characters`.

    Args:
        baseline: another recogniser on the same recordings; None leaves it out, as of the others.
        stream: all recordings as one stream, with a `wer` for each tenth.
        invented_words: words an hour, by the sound they were written in.
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


def to_text(evaluation: Evaluation, turn_head: int = 2) -> str:
    """A few lines for the terminal."""
    lines = [f"{'':24s} {'WER':>22s} {'CER':>8s} {'sub':>6s} {'del':>6s} {'ins':>6s} {'words':>7s} {'clips':>6s}"]
    lines += [_line("all", evaluation.overall)]
    for part in (evaluation.datasets, evaluation.languages):
        if len(part) > 1:
            lines += [_line(name, group) for name, group in part.items()]
    if evaluation.left_out:
        lines.append(_left_out(evaluation))
    times = evaluation.times
    if times.start_error is not None and times.delay is not None:
        f1 = ", ".join(f"F1 at {1000 * t:.0f} ms {value:.2f}" for t, value in times.f1.items())
        lines.append(
            f"word starts: off by {1000 * times.start_error:.0f} ms on average, {f1}; "
            f"written {times.delay:.2f} s after the word's end"
        )
    for turn in evaluation.turns.get(turn_head, []):
        median = "never" if turn.median is None else f"{turn.median:.2f} s after the speech (median)"
        lines.append(
            f"end of turn above {turn.threshold:.2f}: found in {turn.found:.0%}, {median}; "
            f"false alarms in {turn.false_alarms:.1%}"
        )
    speed = evaluation.speed
    lines.append(
        f"{speed.audio:.0f} s of audio in {speed.taken:.0f} s, {speed.streams} side by side: "
        f"{speed.times_real_time:.1f} x real time"
    )
    return "\n".join(lines)


def to_html(evaluation: Evaluation) -> str:
    """One page, complete in itself."""
    sections = [
        f"<h1>{html.escape(evaluation.model)} on {html.escape(evaluation.manifest)}</h1>",
        f"<p>{_left_out(evaluation)}</p>" if evaluation.left_out else "",
        _table("Errors", ("", "WER", "95 %", "CER", "sub", "del", "ins", "words", "clips"), _error_rows(evaluation)),
        _bars("WER by dataset", evaluation.datasets),
        _bars("WER by language", evaluation.languages),
        _bars("WER by speaker", evaluation.speakers),
        _times(evaluation.times),
        *(_turns(head, turns) for head, turns in evaluation.turns.items() if turns),
        _table("Recordings with the most errors", ("clip", "WER", "said", "written"), _worst_rows(evaluation.worst)),
    ]
    body = "\n".join(sections)
    head = f'<meta charset="utf-8"><title>Evaluation</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}{body}</html>'


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.15rem .7rem;text-align:right;border-bottom:1px solid #8884}"
    "td:first-child,th:first-child,td.text{text-align:left}svg{display:block;margin:.5rem 0}"
)


def _left_out(evaluation: Evaluation) -> str:
    return f"recordings left out, as their audio cannot be read: {evaluation.left_out}"


def _line(name: str, group: Group) -> str:
    words = group.words
    interval = f"{words.rate:.1%} ({words.low:.1%} to {words.high:.1%})"
    return (
        f"{name[:24]:24s} {interval:>22s} {group.characters.rate:8.1%} {words.substitutions:6d} "
        f"{words.deletions:6d} {words.insertions:6d} {words.reference:7d} {words.recordings:6d}"
    )


def _error_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    named = [("all", evaluation.overall), *evaluation.datasets.items(), *evaluation.languages.items()]
    return [(name, *_rates(group.words, group.characters)) for name, group in named]


def _rates(words: ErrorRate, characters: ErrorRate) -> tuple[str, ...]:
    counts = (words.substitutions, words.deletions, words.insertions, words.reference, words.recordings)
    interval = f"{words.low:.1%} to {words.high:.1%}"
    return (f"{words.rate:.1%}", interval, f"{characters.rate:.1%}", *map(str, counts))


def _worst(heard: Sequence[Heard]) -> list[dict[str, Any]]:
    rated = [(one, error_rates([one]).words.rate) for one in heard if one.recording.text]
    rated.sort(key=lambda pair: -pair[1])
    return [
        {"audio": one.recording.audio.name, "wer": rate, "said": one.recording.text, "written": one.text}
        for one, rate in rated[:WORST]
    ]


def _worst_rows(worst: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [(w["audio"], f"{w['wer']:.0%}", w["said"], w["written"]) for w in worst]


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in row) for row in rows)
    return f"<h2>{html.escape(title)}</h2><table><tr>{cells}{body}</table>"


def _bars(title: str, named: dict[str, Group]) -> str:
    """Horizontal bars with their intervals; nothing where there is one group only."""
    if len(named) < 2:
        return ""
    height, left, width = 22, 220, 480
    largest = max(1.0, *(group.words.high for group in named.values()))
    parts = []
    for i, (name, group) in enumerate(named.items()):
        y, words = i * height, group.words
        x, low, high = (left + width * value / largest for value in (words.rate, words.low, words.high))
        parts.append(
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{html.escape(name[:28])}</text>'
            f'<rect x="{left}" y="{y + 4}" width="{x - left:.1f}" height="14" fill="#4a7fb5"/>'
            f'<path d="M{low:.1f} {y + 11}H{high:.1f}" stroke="currentColor"/>'
            f'<text x="{high + 6:.1f}" y="{y + 15}">{words.rate:.0%}</text>'
        )
    size = f'width="{left + width + 60}" height="{height * len(named)}"'
    return f'<h2>{html.escape(title)}</h2><svg {size} font-size="13" fill="currentColor">{"".join(parts)}</svg>'


def _times(times: WordTimes) -> str:
    if times.start_error is None or times.delay is None:
        return ""
    rows = [
        ("mean error of a word's start", f"{1000 * times.start_error:.0f} ms"),
        *((f"F1 within {1000 * tolerance:.0f} ms", f"{value:.2f}") for tolerance, value in times.f1.items()),
        ("from a word's end to its last token", f"{times.delay:.2f} s"),
        ("words matched, of those written and spoken", f"{times.matched}, {times.written}, {times.spoken}"),
    ]
    return _table("Word times", ("", ""), rows)


def _turns(head: int, turns: Sequence[EndOfTurn]) -> str:
    rows = [
        (
            f"{turn.threshold:.2f}",
            f"{turn.found:.0%}",
            *("" if value is None else f"{value:.2f} s" for value in (turn.median, turn.late)),
            f"{turn.false_alarms:.1%}",
        )
        for turn in turns
    ]
    columns = ("threshold", "found", "median latency", "90th percentile", "false alarms")
    return _table(f"End of turn by pause head {head}", columns, rows) + _curve(turns)


def _curve(turns: Sequence[EndOfTurn]) -> str:
    """False alarms over median latency, a dot a threshold."""
    points = [(turn.median, turn.false_alarms, turn.threshold) for turn in turns if turn.median is not None]
    if not points:
        return ""
    width, height = 420, 180
    furthest = max(0.5, *(median for median, _, _ in points))
    most = max(0.05, *(alarms for _, alarms, _ in points))
    dots = "".join(
        f'<circle r="4" cx="{40 + max(0.0, median) / furthest * width:.1f}" '
        f'cy="{height - alarms / most * (height - 20):.1f}">'
        f"<title>threshold {threshold}: {median:.2f} s, {alarms:.1%}</title></circle>"
        for median, alarms, threshold in points
    )
    axes = f'<path d="M40 0V{height}H{width + 60}" fill="none" stroke="currentColor"/>'
    labels = (
        f'<text x="{width + 60}" y="{height + 16}" text-anchor="end">latency, up to {furthest:.2f} s</text>'
        f'<text x="44" y="12">false alarms, up to {most:.0%}</text>'
    )
    size = f'width="{width + 80}" height="{height + 24}"'
    return f'<svg {size} font-size="13" fill="currentColor">{axes}{dots}{labels}</svg>'
