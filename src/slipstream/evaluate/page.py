"""An evaluation as one HTML page with tables and plots; needs jinja2."""

from __future__ import annotations

from collections.abc import Sequence

from slipstream.errors import BackendError
from slipstream.evaluate.report import Evaluation, left_out_note
from slipstream.evaluate.scores import Group, TurnScore, WordTimes


def to_html(evaluation: Evaluation) -> str:
    """Render a self-contained page. Raises `BackendError` where jinja2 is not installed."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise BackendError("the page needs jinja2: pip install 'slipstream-stt[eval]'") from error
    loader = PackageLoader("slipstream.evaluate", ".")
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters.update(percent=_percent, seconds=_seconds)
    named = [("all", evaluation.overall), *evaluation.datasets.items(), *evaluation.languages.items()]
    return environment.get_template("page.html").render(
        evaluation=evaluation,
        left_out=left_out_note(evaluation),
        errors=[_error_row(name, group) for name, group in named],
        times=_time_rows(evaluation.times),
        turn_rows=_turn_rows,
        worst=[(w["audio"], _percent(w["wer"], 0), w["said"], w["written"]) for w in evaluation.worst],
    )


def _error_row(name: str, group: Group) -> tuple[str, ...]:
    words = group.words
    counts = (words.substitutions, words.deletions, words.insertions, words.reference, words.recordings)
    interval = f"{_percent(words.low)} to {_percent(words.high)}"
    return (name, _percent(words.rate), interval, _percent(group.characters.rate), *map(str, counts))


def _time_rows(times: WordTimes) -> list[tuple[str, str]]:
    if times.start_error is None or times.start_shift is None or times.delay is None:
        return []
    return [
        ("mean error of a word's start", f"{1000 * times.start_error:.0f} ms"),
        ("median error of it, below 0 too early", f"{1000 * times.start_shift:+.0f} ms"),
        *(
            (f"starts within {1000 * tolerance:.0f} ms", _percent(value, 0))
            for tolerance, value in times.within.items()
        ),
        *((f"F1 within {1000 * tolerance:.0f} ms", f"{value:.2f}") for tolerance, value in times.f1.items()),
        ("from a word's end to its last token", _seconds(times.delay)),
        ("words correct, written and in the reference", f"{times.matched}, {times.written}, {times.spoken}"),
    ]


def _turn_rows(turns: Sequence[TurnScore]) -> list[tuple[str, ...]]:
    return [
        (
            f"{turn.threshold:.2f}",
            _percent(turn.found, 0),
            *("" if value is None else _seconds(value) for value in (turn.median, turn.late)),
            _percent(turn.false_alarms),
        )
        for turn in turns
    ]


def _percent(share: float, digits: int = 1) -> str:
    return f"{share:.{digits}%}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s"
