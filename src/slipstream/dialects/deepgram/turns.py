"""The turns of a Flux connection: a state machine over a session's events. All times are seconds of its audio."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from slipstream.dialects.models import StreamInfo
from slipstream.dialects.order import Order, Table
from slipstream.events import OpenWord, Step, Word

UPDATE_FRAMES = 3
"""How often `Update` comes: about every 0.25 s."""
_SAME = 1e-6
_HYSTERESIS = 0.1

Event: TypeAlias = Literal["Update", "StartOfTurn", "EagerEndOfTurn", "TurnResumed", "EndOfTurn"]
Trigger: TypeAlias = Literal["model", "manual", "timeout"]

TURNS: Table = {
    "idle": {"Update": "idle", "StartOfTurn": "turn"},
    "turn": {"Update": "turn", "EagerEndOfTurn": "awaiting", "EndOfTurn": "idle"},
    "awaiting": {"Update": "awaiting", "TurnResumed": "turn", "EndOfTurn": "idle"},
}
"""The events of turns. In the state `awaiting`, the transcript is that of the `EagerEndOfTurn`."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When a turn ends.

    Args:
        end: Confidence above which a turn ends; 1 never ends it.
        eager: Confidence above which its end is announced; None never announces it.
        timeout: Seconds without a word after which it ends.
    """

    end: float = 0.7
    eager: float | None = None
    timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class TurnInfo:
    """A message about a turn.

    Args:
        event: What happened.
        turn: Number of the turn.
        start: Where the turn's audio begins.
        end: Where the audio so far ends.
        words: The words of the turn.
        confidence: That no more speech comes in the turn.
        trigger: What ended the turn.
    """

    event: Event
    turn: int
    start: float
    end: float
    words: tuple[Word, ...]
    confidence: float
    trigger: Trigger | None = None


@dataclass(frozen=True, slots=True)
class AskFlush:
    """Ask for a flush of what the model has processed."""


Found: TypeAlias = "TurnInfo | AskFlush"


class Turns:
    """Follows a session and yields what to send. A turn ends only after a flush, with all of its words.

    `EagerEndOfTurn` needs a flush as well, so it has all words up to its time. The text of the stream only grows: if a
    word comes after it, or the confidence falls, `TurnResumed` follows. The `EndOfTurn` after an `EagerEndOfTurn`
    therefore has the same words.
    """

    def __init__(self, thresholds: Thresholds, info: StreamInfo) -> None:
        self.thresholds = thresholds
        self._info = info
        self._order = Order(TURNS)
        self._turn = 0
        self._words: list[Word] = []
        self._open: OpenWord | None = None
        self._start = self._clock = self._last_word = 0.0
        self._confidence = 0.0
        self._asked: list[tuple[Literal["eager"] | Trigger, float]] = []
        self._pause_heads = False
        self._quiet_frames = 0

    def step(self, step: Step) -> Iterator[Found]:
        """Take a frame."""
        self._clock = step.index * self._info.frame_seconds
        self._pause_heads = step.end_of_turn is not None
        if step.end_of_turn is not None:
            self._confidence = step.end_of_turn
        self._quiet_frames += 1
        state = self._order.state
        if state != "idle":
            yield from self._decide(state)
        if self._quiet_frames >= UPDATE_FRAMES:
            yield self._event("Update")

    def word(self, word: Word | OpenWord) -> Iterator[Found]:
        """Take a word."""
        if isinstance(word, OpenWord):
            self._open = word
        else:
            self._open = None
            self._words.append(word)
        if not self._pause_heads and not self._asked:
            self._confidence = 0.0
        self._last_word = max(self._last_word, word.start if isinstance(word, OpenWord) else word.end)
        if self._order.state == "idle":
            yield self._event("StartOfTurn")
        elif self._order.state == "awaiting":
            yield self._event("TurnResumed")

    def end_of_turn(self) -> Iterator[Found]:
        """Take an end of turn, which gives the confidence of a model without pause heads."""
        if not self._pause_heads:
            self._confidence = 1.0
            if self._order.state != "idle":
                yield from self._decide(self._order.state)

    def force(self, time: float) -> None:
        """End the turn once the text up to `time` is known; the flush follows."""
        self._asked.append(("manual", time))

    def flushed(self, time: float) -> Iterator[Found]:
        """Take the end of a flush: all text up to `time` is known."""
        self._open = None
        done = [what for what, asked in self._asked if asked <= time + _SAME]
        self._asked = [(what, asked) for what, asked in self._asked if asked > time + _SAME]
        for what in done:
            if what == "eager":
                if self._order.state == "turn" and self._words:
                    yield self._event("EagerEndOfTurn")
            elif self._order.state != "idle" and self._words:
                yield from self._end(what)

    def final(self) -> Iterator[Found]:
        """Take the end of the audio, which ends the turn."""
        self._open = None
        if self._order.state != "idle" and self._words:
            yield from self._end("manual")

    def _decide(self, state: str) -> Iterator[Found]:
        """Ask for the flush that an end of turn needs, or resume the turn."""
        limits, confidence = self.thresholds, self._confidence
        asked = {what for what, _ in self._asked}
        if not self._words or asked & {"model", "timeout"}:
            return
        if state == "awaiting":
            eager = limits.eager if limits.eager is not None else limits.end
            if confidence < min(self._info.turns.resume_below, eager - _HYSTERESIS):
                yield self._event("TurnResumed")
                return
        elif limits.eager is not None and confidence >= limits.eager and "eager" not in asked:
            yield self._ask("eager")
            return
        if confidence >= limits.end and limits.end < 1:
            yield self._ask("model")
        elif self._clock - self._last_word >= limits.timeout and self._open is None:
            yield self._ask("timeout")

    def _ask(self, what: Literal["eager"] | Trigger) -> AskFlush:
        self._asked.append((what, self._clock))
        return AskFlush()

    def _end(self, trigger: Trigger) -> Iterator[Found]:
        if self._order.state == "turn" and self.thresholds.eager is not None and trigger != "manual":
            yield self._event("EagerEndOfTurn")
        yield self._event("EndOfTurn", trigger)
        self._turn += 1
        self._words = []
        self._start = self._clock
        self._confidence = 0.0

    def _event(self, event: Event, trigger: Trigger | None = None) -> TurnInfo:
        self._order.follow(event)
        self._quiet_frames = 0
        words, opened = tuple(self._words), self._open
        if opened is not None:
            words += (Word(opened.text, opened.start, max(opened.start, self._clock), opened.confidence),)
        end = max(self._start, self._clock)
        return TurnInfo(event, self._turn, self._start, end, words, self._confidence, trigger)
