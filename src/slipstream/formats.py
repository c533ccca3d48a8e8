"""A transcript and the formats it is written in."""

from __future__ import annotations

import bisect
import html
import itertools
import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from slipstream.errors import ConfigError
from slipstream.types import Turn, Word

Format = Literal["txt", "json", "jsonl", "srt", "vtt", "tsv"]


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in a recording of `duration` seconds, as heard by `model`, whose text lags `delay` seconds."""

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

    def to_srt(self) -> str:
        """SubRip subtitles."""
        return "\n".join(
            f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{cue.text}\n"
            for number, cue in enumerate(cues(self), start=1)
        )

    def to_vtt(self) -> str:
        """WebVTT subtitles."""
        return "WEBVTT\n" + "".join(
            f"\n{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{html.escape(cue.text, quote=False)}\n"
            for cue in cues(self)
        )

    def render(self, format: Format) -> str:
        """Write in the format of that name. Raises `ConfigError` for another name, listing those there are."""
        if format not in _WRITERS:
            raise ConfigError(f"unknown format {format!r}: choose one of {', '.join(get_args(Format))}")
        return _WRITERS[format](self)

    def _by_turn(self) -> Iterator[list[Word]]:
        """Words grouped by the turn they belong to."""
        starts = [turn.start for turn in self.turns]
        for _, words in itertools.groupby(self.words, lambda word: bisect.bisect_right(starts, word.start)):
            yield list(words)


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle: up to two lines of text, shown from `start` to `end` seconds."""

    text: str
    start: float
    end: float


LINE_CHARS = 42  # subtitling practice: what is read at one glance (Netflix and BBC guides)
CUE_LINES = 2
MIN_CUE_SECONDS = 1.0
MAX_CUE_SECONDS = 7.0
PAUSE_SECONDS = 1.0
"""A pause this long between two words starts a new cue."""


def cues(transcript: Transcript) -> list[Cue]:
    """Cut a transcript into subtitles.

    A cue ends with a turn, at a pause of `PAUSE_SECONDS`, after the end of a sentence once a line is full, and before
    it would not fit `CUE_LINES` of `LINE_CHARS` or last longer than `MAX_CUE_SECONDS`. A short one stays for
    `MIN_CUE_SECONDS` where the next one and the recording leave it the time. Cues do not overlap. A word too long for
    a line is cut into several.
    """
    groups = [group for words in transcript._by_turn() for group in _cue_words(words)]
    starts = [group[0].start for group in groups]
    limits = itertools.chain(starts[1:], [transcript.duration])
    found = []
    for group, start, limit in zip(groups, starts, limits, strict=False):
        spoken = min(group[-1].end, start + MAX_CUE_SECONDS)
        end = max(spoken, min(start + MIN_CUE_SECONDS, limit))
        found.append(Cue("\n".join(_balanced_lines(group)), start, end))
    return found


def _cue_words(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Cut one turn's words into the words of its cues."""
    group: list[Word] = []
    for word in words:
        if group and _cue_ends(group, word):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _cue_ends(group: Sequence[Word], following: Word) -> bool:
    text = _text(group)
    return (
        following.start - group[-1].end >= PAUSE_SECONDS
        or following.end - group[0].start > MAX_CUE_SECONDS
        or (text.endswith((".", "?", "!", "…")) and len(text) >= LINE_CHARS)
        or len(_wrap(_text([*group, following]), LINE_CHARS)) > CUE_LINES
    )


def _balanced_lines(words: Sequence[Word]) -> list[str]:
    """Break words into as few lines as they need, the lines about equally long."""
    text = _text(words)
    lines = _wrap(text, LINE_CHARS)
    for width in range(min(LINE_CHARS, max(map(len, text.split()), default=1)), LINE_CHARS):
        narrower = _wrap(text, width)
        if len(narrower) == len(lines):
            return narrower
    return lines


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False)


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


_WRITERS: dict[Format, Callable[[Transcript], str]] = {
    "txt": Transcript.to_txt,
    "json": Transcript.to_json,
    "jsonl": Transcript.to_jsonl,
    "srt": Transcript.to_srt,
    "vtt": Transcript.to_vtt,
    "tsv": Transcript.to_tsv,
}
