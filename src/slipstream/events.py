"""What a stream emits: words, turns and the other events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Word:
    """One word and when it was spoken.

    `start`, `end`: seconds, `start <= end`. `confidence`: the product of its tokens' probabilities, in [0, 1].
    """

    text: str
    start: float
    end: float
    confidence: float = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """A stretch of speech between two ends of turn, in seconds."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The session has a slot: its audio is being heard. The first event, and the first again after a restart."""


@dataclass(frozen=True, slots=True)
class PartialWord:
    """A word that is still being written; the next one with the same start replaces it."""

    text: str
    start: float


@dataclass(frozen=True, slots=True)
class OpenWord:
    """A word whose text is whole and whose end is not known yet; its `Word` follows.

    Should the model go on with it after a pad, it comes once more, longer, with the same start.
    """

    text: str
    start: float
    confidence: float


@dataclass(frozen=True, slots=True)
class EndOfTurn:
    """At `time` the speaker was found to have finished; up to the model's delay of text may still follow."""

    time: float


@dataclass(frozen=True, slots=True)
class Flushed:
    """All text of the audio up to `time` is out; getting the part the model still owed took `seconds`."""

    time: float
    seconds: float


@dataclass(frozen=True, slots=True)
class MarkerReached:
    """All text of the audio sent before this marker is out."""

    id: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """At `time` the model's state was made fresh because it had gone mute or round in circles, as `reason` says."""

    time: float
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """One frame of the session's own audio was heard.

    `index`: 1 for the first frame. `pause`: each pause head's probability that no new word comes within its horizon;
    empty for a model without heads. `buffered`: samples received and not yet heard.
    """

    index: int
    pause: tuple[float, ...]
    buffered: int


@dataclass(frozen=True, slots=True)
class Final:
    """The last event: the audio was `duration` seconds long, its last flush took `flush_seconds`."""

    duration: float
    flush_seconds: float


Event: TypeAlias = (
    Ready | PartialWord | OpenWord | Word | EndOfTurn | Turn | Flushed | MarkerReached | Recovered | Step | Final
)
"""What a session tells its listener, in the order in which it happens."""
