"""A transcript and the formats it is written in."""

from __future__ import annotations

import bisect
import html
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from slipstream.errors import ConfigError
from slipstream.events import Turn, Word
from slipstream.subtitles import Cue, SubtitleLayout, cues

Format = Literal["txt", "json", "jsonl", "srt", "vtt", "tsv"]
SUBTITLES = ("srt", "vtt")


@dataclass(frozen=True, slots=True)
class Transcript:
    """The words of a recording of `duration` seconds, as transcribed by `model`, whose text lags `delay` seconds."""

    words: tuple[Word, ...]
    turns: tuple[Turn, ...]
    duration: float
    model: str
    delay: float

    @property
    def text(self) -> str:
        return _text(self.words)

    def to_txt(self) -> str:
        """Plain text, a line for each turn."""
        return "".join(f"{_text(words)}\n" for words in self._by_turn())

    def to_json(self) -> str:
        """One JSON object: `text`, `words`, `turns` (`start`, `end`), `duration`, `model`, `delay`; times in seconds.

        A word has `text`, `start`, `end`, `confidence`.
        """
        body = {
            "text": self.text,
            "words": [_word_fields(word) for word in self.words],
            "turns": [_rounded(asdict(turn)) for turn in self.turns],
            "duration": round(self.duration, 3),
            "model": self.model,
            "delay": self.delay,
        }
        return json.dumps(body, ensure_ascii=False, indent=2) + "\n"

    def to_jsonl(self) -> str:
        """A JSON object a line, one for each word: `text`, `start`, `end`, `confidence`."""
        return "".join(json.dumps(_word_fields(word), ensure_ascii=False) + "\n" for word in self.words)

    def to_tsv(self) -> str:
        """Words in columns `start`, `end` (seconds), `confidence`, `text`, with a header line."""
        rows = (f"{w.start:.3f}\t{w.end:.3f}\t{w.confidence:.3f}\t{' '.join(w.text.split())}\n" for w in self.words)
        return "start\tend\tconfidence\ttext\n" + "".join(rows)

    def to_srt(self, *, max_line_width: int = 42, max_line_count: int = 2, max_words: int | None = None) -> str:
        """Write SubRip subtitles.

        Args:
            max_line_width: in columns; East Asian wide letters and emoji take two.
            max_line_count: lines of a subtitle.
            max_words: words of a subtitle; None for as many as fit.

        Example:
            >>> Path("talk.srt").write_text(transcript.to_srt(max_line_width=32, max_line_count=1))
        """
        layout = SubtitleLayout(max_line_width, max_line_count, max_words)
        return "\n".join(
            f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{cue.text}\n"
            for number, cue in enumerate(self.cues(layout), start=1)
        )

    def to_vtt(self, *, max_line_width: int = 42, max_line_count: int = 2, max_words: int | None = None) -> str:
        """Write WebVTT subtitles; the arguments are those of `to_srt`."""
        layout = SubtitleLayout(max_line_width, max_line_count, max_words)
        return "WEBVTT\n" + "".join(
            f"\n{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{html.escape(cue.text, quote=False)}\n"
            for cue in self.cues(layout)
        )

    def cues(self, layout: SubtitleLayout | None = None) -> list[Cue]:
        """Cut the words into subtitles; see `subtitles.cues`."""
        return cues(self._by_turn(), self.duration, layout or SubtitleLayout())

    def render(self, format: Format, layout: SubtitleLayout | None = None) -> str:
        """Write in the format of that name; `layout` is for subtitles.

        Raises `ConfigError` for another name, listing those there are.
        """
        if format not in get_args(Format):
            raise ConfigError(f"unknown format {format!r}: choose one of {', '.join(get_args(Format))}")
        if layout and format in SUBTITLES:
            return str(getattr(self, f"to_{format}")(**asdict(layout)))
        return str(getattr(self, f"to_{format}")())

    def _by_turn(self) -> Iterator[list[Word]]:
        """Words grouped by the turn they belong to."""
        starts = [turn.start for turn in self.turns]
        for _, words in itertools.groupby(self.words, lambda word: bisect.bisect_right(starts, word.start)):
            yield list(words)


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


def _clock(seconds: float, decimal_mark: str) -> str:
    milliseconds = round(seconds * 1000)
    return (
        f"{milliseconds // 3_600_000:02}:{milliseconds // 60_000 % 60:02}:{milliseconds // 1000 % 60:02}"
        f"{decimal_mark}{milliseconds % 1000:03}"
    )


def _word_fields(word: Word) -> dict[str, Any]:
    return _rounded(asdict(word))


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in fields.items()}
