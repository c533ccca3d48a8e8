"""The turns of one speaker, for voice agents: from the events of a live stream to what an agent acts on.

listener = TurnListener(stream, eager_above=0.3)
async for event in stream:
    for change in listener.handle(event):
        print(change)
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from slipstream.client import StreamEvent
from slipstream.errors import ConfigError
from slipstream.events import EndOfTurn, Final, MarkerReached, PartialWord, Step, Turn, Word


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The first word of a turn is being written; it started at `time` seconds."""

    time: float


@dataclass(frozen=True, slots=True)
class Utterance:
    """The final words of the turn so far, and the word that is being written."""

    words: tuple[Word, ...]
    partial: PartialWord | None = None

    @property
    def text(self) -> str:
        """The words, separated by spaces."""
        return " ".join([*(word.text for word in self.words), *([self.partial.text] if self.partial else [])])

    @property
    def start(self) -> float:
        """Of the first word, in seconds; 0 without words."""
        return self.words[0].start if self.words else self.partial.start if self.partial else 0.0

    @property
    def end(self) -> float:
        """Of the last final word, in seconds; 0 without words."""
        return self.words[-1].end if self.words else self.start

    @property
    def confidence(self) -> float:
        """The mean of the words; 0 without words."""
        return sum(word.confidence for word in self.words) / len(self.words) if self.words else 0.0


@dataclass(frozen=True, slots=True)
class Interim:
    """The text of the turn has changed."""

    utterance: Utterance


@dataclass(frozen=True, slots=True)
class EagerEnd:
    """The turn has probably ended. The text is complete: the same follows in `Ended`, or `Resumed` withdraws it."""

    utterance: Utterance


@dataclass(frozen=True, slots=True)
class Resumed:
    """The speaker has gone on after `EagerEnd`."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The text is final. `confirms`: it responds to `TurnListener.flush`, and may then be empty."""

    utterance: Utterance
    confirms: bool = False


TurnEvent: TypeAlias = SpeechStarted | Interim | EagerEnd | Resumed | Ended
"""What a voice agent acts on."""


FLUSH_LAG_SECONDS = 0.4
"""A stream that is further behind its audio is not flushed at an end of turn: the flush would come after later audio,
and its text comes without delay anyway."""


class Flushable(Protocol):
    """A stream that can be flushed, such as `ResumableStream`."""

    @property
    def lag(self) -> float:
        """How far the server is behind the audio, in seconds."""

    def flush(self, id: int = 0) -> None:
        """Get the text of all audio so far; `MarkerReached` follows it.

        Args:
            id: Number that the event repeats.
        """


class TurnListener:
    """Follows the turns in the events of a stream, and flushes it where the text should be complete.

    Args:
        stream: The stream that is flushed.
        server_turns: End turns where the server reports `EndOfTurn`; otherwise only at `flush`, and where the server
            reports a complete `Turn`.
        eager_above: Probability of the pause head above which a turn has probably ended; None reports no `EagerEnd`.
        head: The pause head; head 2 predicts that no new word follows within 2 s.

    Raises:
        ConfigError: A value is out of its range.
    """

    def __init__(
        self, stream: Flushable, *, server_turns: bool = True, eager_above: float | None = None, head: int = 2
    ) -> None:
        if eager_above is not None and not 0 < eager_above <= 1:
            raise ConfigError(f"eager_above={eager_above}: expected a probability above 0")
        if head < 0:
            raise ConfigError(f"head={head}: expected 0 or more")
        self._stream, self._server_turns = stream, server_turns
        self._eager_above, self._head = eager_above, head
        self._words: list[Word] = []
        self._partial: PartialWord | None = None
        self._shown = ""  # by the last `Interim` of the turn
        self._speaking = False
        self._eager = _Eager.NONE
        self._awaits_turn = False  # the end of turn is reported, and its text comes without a flush
        self._flushes: dict[int, _Reason] = {}
        self._ids = itertools.count(1)

    @property
    def speaking(self) -> bool:
        """Whether a turn has begun and not ended."""
        return self._speaking

    def flush(self) -> None:
        """Get the text of all audio so far; `Ended` with `confirms` follows it."""
        self._flush(_Reason.ASKED)

    def handle(self, event: StreamEvent) -> list[TurnEvent]:
        """Follow the stream by one event.

        Args:
            event: The next event of the stream.

        Returns:
            What it means for the turn; often nothing.
        """
        if isinstance(event, (Word, PartialWord)):
            return self._heard(event)
        if isinstance(event, Step):
            self._watch(event)
        elif isinstance(event, EndOfTurn) and self._server_turns:
            if self._eager is _Eager.REPORTED:
                return self._end()
            self._awaits_turn = self._stream.lag > FLUSH_LAG_SECONDS
            if not self._awaits_turn:
                self._flush(_Reason.TURN)
        elif isinstance(event, Turn) and (self._awaits_turn or not self._server_turns):
            self._awaits_turn = False
            return self._end(event.end)
        elif isinstance(event, MarkerReached):
            return self._flushed(self._flushes.pop(event.id, None))
        elif isinstance(event, Final):
            return self._end()
        return []

    def _heard(self, event: Word | PartialWord) -> list[TurnEvent]:
        events: list[TurnEvent] = []
        if not self._speaking:
            self._speaking = True
            events.append(SpeechStarted(event.start))
        if self._eager is _Eager.REPORTED:
            self._eager = _Eager.NONE
            events.append(Resumed())
        if isinstance(event, Word):
            self._words.append(event)
            self._partial = None
        else:
            self._partial = event
        utterance = Utterance(tuple(self._words), self._partial)
        if utterance.text != self._shown:  # a word that is complete has mostly been shown before
            self._shown = utterance.text
            events.append(Interim(utterance))
        return events

    def _watch(self, step: Step) -> None:
        if self._eager_above is None or self._eager is not _Eager.NONE or self._head >= len(step.pause):
            return
        late = self._stream.lag > FLUSH_LAG_SECONDS
        if self._speaking and not late and step.pause[self._head] > self._eager_above:
            self._eager = _Eager.FLUSHING
            self._flush(_Reason.EAGER)

    def _flushed(self, reason: _Reason | None) -> list[TurnEvent]:
        if reason is _Reason.EAGER:
            # An end of turn that came meanwhile waits for its own flush, which is next.
            if not self._words or self._eager is not _Eager.FLUSHING:
                return []
            self._eager = _Eager.REPORTED
            return [EagerEnd(Utterance(tuple(self._words)))]
        if reason is None:
            return []
        return self._end(confirms=reason is _Reason.ASKED)

    def _end(self, time: float | None = None, confirms: bool = False) -> list[TurnEvent]:
        """End the turn with the words up to `time`; None is all of them."""
        ended = [word for word in self._words if time is None or word.end <= time]
        self._words = self._words[len(ended) :]
        self._shown = ""
        self._eager = _Eager.NONE
        if not self._words and self._partial is None:
            self._speaking = False
        return [Ended(Utterance(tuple(ended)), confirms)] if ended or confirms else []

    def _flush(self, reason: _Reason) -> None:
        id = next(self._ids)
        self._flushes[id] = reason
        self._stream.flush(id)


class _Eager(enum.Enum):
    NONE = enum.auto()
    FLUSHING = enum.auto()
    REPORTED = enum.auto()


class _Reason(enum.Enum):
    ASKED = enum.auto()
    TURN = enum.auto()
    EAGER = enum.auto()
