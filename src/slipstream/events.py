"""The events of a stream: words, turns and others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another text for a word. `confidence`: its probability among the texts that the search compared."""

    text: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Word:
    """One word and when it was spoken.

    Args:
        text: The word, with its punctuation.
        start: In seconds.
        end: In seconds, at least `start`.
        confidence: The probability that it is right, within [0, 1]. Without a calibration of the model, the product of
            its tokens' probabilities.
        omission: The probability that words are missing between the word before and this one. Without a calibration,
            the probability that one of the pads in between should have been a word, by the pads' own probabilities.
        language: Its language, as a code of ISO 639-1; None where the session was given no languages.
        language_confidence: The probability of that language among those of the session.
        alternatives: Other texts that it may be, the most likely first, if the session requested them.
    """

    text: str
    start: float
    end: float
    confidence: float = 1.0
    omission: float = 0.0
    language: str | None = None
    language_confidence: float | None = None
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """Speech between two ends of turn.

    Args:
        start: In seconds.
        end: In seconds.
        language: The language of its words together, as for `Word`.
        language_confidence: The probability of that language.
    """

    start: float
    end: float
    language: str | None = None
    language_confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The session has a slot, and its audio is processed. The first event, also after a restart."""


@dataclass(frozen=True, slots=True)
class PartialWord:
    """A word that is not complete; the next event with the same start replaces it."""

    text: str
    start: float


@dataclass(frozen=True, slots=True)
class OpenWord:
    """A word whose text is complete and whose end is not known yet; its `Word` follows.

    If the model continues the word, this event comes again with the longer text and the same start.
    """

    text: str
    start: float
    confidence: float


@dataclass(frozen=True, slots=True)
class StartOfTurn:
    """A speaker has begun at about `time` seconds: found by voice, or by a word. An `EndOfTurn` follows."""

    time: float


@dataclass(frozen=True, slots=True)
class EndOfTurn:
    """The speaker has finished at `time` seconds. Text may still follow, up to the model's delay."""

    time: float


@dataclass(frozen=True, slots=True)
class Flushed:
    """All text of the audio up to `time` is out. `seconds`: how long the flush took."""

    time: float
    seconds: float


@dataclass(frozen=True, slots=True)
class MarkerReached:
    """All text of the audio sent before this marker is out."""

    id: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """The model was reset at `time` because it had stopped writing or repeated itself; `reason` describes it."""

    time: float
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """One frame of the session's audio was processed.

    Args:
        index: Number of the frame, from 1.
        pause: For each pause head, the probability that no new word follows within its horizon; empty for a model
            without heads.
        buffered: Samples received and not yet processed.
        end_of_turn: The probability that ends a turn above `TurnOptions.end_above`: of the model's curve, or of the
            pause head; None without heads, and from an older server.
    """

    index: int
    pause: tuple[float, ...]
    buffered: int
    end_of_turn: float | None = None


@dataclass(frozen=True, slots=True)
class History:
    """The model's text of the last frames, for a session that requests it (`slipstream.engine.history`).

    Args:
        end: Number of the frame after them.
        text: Opaque; for `Continuation`.
    """

    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Final:
    """The last event. `duration`: of the audio, in seconds. `flush_seconds`: how long the last flush took."""

    duration: float
    flush_seconds: float


Event: TypeAlias = (
    Ready
    | PartialWord
    | OpenWord
    | Word
    | StartOfTurn
    | EndOfTurn
    | Turn
    | Flushed
    | MarkerReached
    | Recovered
    | Step
    | History
    | Final
)
"""Any event of a session."""
