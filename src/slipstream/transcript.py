"""Transcripts: built from events, written in several formats."""

from __future__ import annotations

import bisect
import heapq
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from slipstream.errors import ConfigError
from slipstream.events import Final, Turn, Word
from slipstream.subtitles import Cue, SubtitleLayout, clock, cues

Format = Literal["txt", "json", "jsonl", "srt", "vtt", "tsv"]
SUBTITLES = ("srt", "vtt")


@dataclass(frozen=True, slots=True)
class Segment:
    """The words of one turn.

    Args:
        words: The words, at least one, in order.
    """

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        """The words, with spaces between them."""
        return _text(self.words)

    @property
    def start(self) -> float:
        """Start of the first word, in seconds."""
        return self.words[0].start

    @property
    def end(self) -> float:
        """End of the last word, in seconds."""
        return self.words[-1].end


@dataclass(frozen=True, slots=True)
class Transcript:
    """The words of a recording.

    Args:
        words: Its words, in order.
        turns: Its turns, in order.
        duration: Length of the recording, in seconds.
        model: Name of the model that transcribed it.
        delay: How far the model's text is behind the audio, in seconds.
    """

    words: tuple[Word, ...]
    turns: tuple[Turn, ...]
    duration: float
    model: str
    delay: float

    @property
    def text(self) -> str:
        """The words, with spaces between them."""
        return _text(self.words)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of its words, that of most words first; none if no language was identified."""
        return languages_of(self.words)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The words grouped by turn.

        Example:
            >>> for segment in transcript.segments:
            ...     print(f"{segment.start:.2f} {segment.text}")
        """
        starts = [turn.start for turn in self.turns]
        groups = itertools.groupby(self.words, lambda word: bisect.bisect_right(starts, word.start))
        return tuple(Segment(tuple(words)) for _, words in groups)

    def to_txt(self) -> str:
        """Return plain text, one line per turn."""
        return "".join(f"{segment.text}\n" for segment in self.segments)

    def to_json(self) -> str:
        """Return one JSON object: `text`, `words`, `turns`, `duration`, `model`, `delay`; times in seconds.

        A word has `text`, `start`, `end`, `confidence`, `omission` if it is above 0, and `alternatives` (`text`,
        `confidence`) if there are any; a turn has `start`, `end`.
        Both have `language` and `language_confidence` where the session identified languages; the object then has
        `languages`.
        """
        body = {
            "text": self.text,
            "words": [_word_fields(word) for word in self.words],
            "turns": [_rounded(asdict(turn)) for turn in self.turns],
            **({"languages": self.languages} if self.languages else {}),
            "duration": round(self.duration, 3),
            "model": self.model,
            "delay": self.delay,
        }
        return json.dumps(body, ensure_ascii=False, indent=2) + "\n"

    def to_jsonl(self) -> str:
        """Return one JSON object per word and line, as in `to_json`."""
        return "".join(json.dumps(_word_fields(word), ensure_ascii=False) + "\n" for word in self.words)

    def to_tsv(self) -> str:
        """Return the words in columns `start`, `end` (seconds), `confidence`, `text`, with a header line."""
        rows = (f"{w.start:.3f}\t{w.end:.3f}\t{w.confidence:.3f}\t{' '.join(w.text.split())}\n" for w in self.words)
        return "start\tend\tconfidence\ttext\n" + "".join(rows)

    def to_srt(self, *, max_line_width: int = 42, max_line_count: int = 2, max_words: int | None = None) -> str:
        """Return SubRip subtitles.

        Args:
            max_line_width: Columns per line; East Asian wide letters and emoji take two.
            max_line_count: Lines per subtitle.
            max_words: Words per subtitle; None for as many as fit.

        Raises:
            ConfigError: A value is below 1, or `max_line_width` below 2.

        Example:
            >>> Path("talk.srt").write_text(transcript.to_srt(max_line_width=32, max_line_count=1))
        """
        layout = SubtitleLayout(max_line_width, max_line_count, max_words)
        return "\n".join(
            f"{number}\n{clock(cue.start, ',')} --> {clock(cue.end, ',')}\n{cue.text}\n"
            for number, cue in enumerate(self.cues(layout), start=1)
        )

    def to_vtt(self, *, max_line_width: int = 42, max_line_count: int = 2, max_words: int | None = None) -> str:
        """Return WebVTT subtitles.

        Args:
            max_line_width: As for `to_srt`.
            max_line_count: As for `to_srt`.
            max_words: As for `to_srt`.

        Raises:
            ConfigError: As for `to_srt`.
        """
        layout = SubtitleLayout(max_line_width, max_line_count, max_words)
        return "WEBVTT\n" + "".join(cue.to_vtt() for cue in self.cues(layout))

    def cues(self, layout: SubtitleLayout | None = None) -> list[Cue]:
        """Cut the words into subtitles.

        Args:
            layout: The size of a subtitle; 42 columns and 2 lines by default.

        Returns:
            Subtitles with times in seconds; they do not overlap.
        """
        return cues([segment.words for segment in self.segments], self.duration, layout or SubtitleLayout())

    def render(self, format: Format, layout: SubtitleLayout | None = None) -> str:
        """Return the transcript in the format of this name.

        Args:
            format: `txt`, `json`, `jsonl`, `srt`, `vtt` or `tsv`.
            layout: The size of a subtitle, for `srt` and `vtt`.

        Raises:
            ConfigError: The format is unknown.
        """
        if format not in get_args(Format):
            raise ConfigError(f"unknown format {format!r}: choose one of {', '.join(get_args(Format))}")
        if layout and format in SUBTITLES:
            return str(getattr(self, f"to_{format}")(**asdict(layout)))
        return str(getattr(self, f"to_{format}")())


class TranscriptBuilder:
    """Builds a transcript from the events of a stream.

    Example:
        >>> builder = TranscriptBuilder()
        >>> for event in transcriber.stream(chunks, 16_000):
        ...     builder.add(event)
        >>> transcript = builder.build(transcriber.model, transcriber.delay)
    """

    def __init__(self) -> None:
        self.words: list[Word] = []
        self.turns: list[Turn] = []
        self.final: Final | None = None
        """The last event of the stream, once it has come."""

    def add(self, event: object) -> None:
        """Add the next event.

        Args:
            event: Events other than `Word`, `Turn` and `Final` are ignored.
        """
        if isinstance(event, Word):
            self.words.append(event)
        elif isinstance(event, Turn):
            self.turns.append(event)
        elif isinstance(event, Final):
            self.final = event

    def build(self, model: str, delay: float, duration: float = 0.0) -> Transcript:
        """Return the transcript so far.

        Args:
            model: Name of the model.
            delay: How far its text is behind the audio, in seconds.
            duration: In seconds, of a stream that ended without `Final`.
        """
        seconds = self.final.duration if self.final else duration
        return Transcript(tuple(self.words), tuple(self.turns), seconds, model, delay)


def languages_of(words: Iterable[Word]) -> tuple[str, ...]:
    """Return the languages of words, that of most words first; none if no language was identified."""
    return tuple(language for language, _ in Counter(w.language for w in words if w.language).most_common())


def likely_texts(words: Sequence[Word], most: int) -> list[tuple[Word, ...]]:
    """Return the most likely texts of words with alternatives, the words themselves first.

    A text has one of the texts of each word. Its probability is the product of their shares among those that the search
    compared. The confidence of an alternative is that of the word, times the ratio of their shares.

    Args:
        words: Words, with the alternatives if the session requested them.
        most: Texts to return; there are fewer where the model was in no doubt.
    """
    ranked: list[tuple[float, tuple[Word, ...]]] = [(1.0, ())]
    for word in words:
        share = 1.0 - sum(other.confidence for other in word.alternatives)
        choices = [(share, word)]
        for other in word.alternatives:
            confidence = word.confidence * min(1.0, other.confidence / share) if share > 0 else word.confidence
            choices.append((other.confidence, replace(word, text=other.text, confidence=confidence, alternatives=())))
        longer = ((before * share, (*text, choice)) for before, text in ranked for share, choice in choices)
        ranked = heapq.nlargest(most, longer, key=lambda pair: pair[0])
    best = tuple(words)
    return [best, *(text for _, text in ranked if text != best)][:most]


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


def _word_fields(word: Word) -> dict[str, Any]:
    fields = _rounded(asdict(word))
    fields["alternatives"] = [_rounded(one) for one in fields["alternatives"]]
    return {key: value for key, value in fields.items() if value or key not in ("omission", "alternatives")}


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    """Round numbers, and leave out what is not known."""
    return {
        key: round(value, 3) if isinstance(value, float) else value
        for key, value in fields.items()
        if value is not None
    }
