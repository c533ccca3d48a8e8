"""One channel of a `/v1/listen` connection: which of its words are final, and where its speech begins and ends.

All times are seconds of the channel's own audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from slipstream.dialects.models import StreamInfo
from slipstream.events import OpenWord, Step, Word

if TYPE_CHECKING:
    from slipstream.dialects.deepgram.v1 import Options

LONGEST_RANGE = 5.0
"""Words become final after this much audio, in speech without a pause, too."""
SLACK_SECONDS = 0.4
"""How long after the model's delay the tokens of a word may come."""
_SAME = 1e-6


@dataclass(frozen=True, slots=True)
class Found:
    """What happened: a message to send, or a `Flush` to request.

    Args:
        kind: What it is.
        start: Of the range of `Results`.
        end: Of the range, or the time of another message.
        words: The words of `Results`.
        is_final: Whether they are final.
        speech_final: Whether speech ended.
        from_finalize: Whether they respond to `Finalize`.
    """

    kind: Literal["Results", "SpeechStarted", "UtteranceEnd", "Flush"]
    start: float = 0.0
    end: float = 0.0
    words: Sequence[Word] = ()
    is_final: bool = False
    speech_final: bool = False
    from_finalize: bool = False


class Channel:
    """The state of one channel. Its methods take what happened and return what follows from it."""

    def __init__(self, options: Options, info: StreamInfo) -> None:
        self._options, self._info = options, info
        self._above, self._below = info.turns.end_above, info.turns.resume_below
        self._clock = 0.0
        self._from = 0.0  # where the current range begins
        self._words: list[Word] = []
        self._open: OpenWord | None = None
        self._quiet_from: float | None = None  # where the current pause began
        self._speaking = False  # since the last endpoint
        self._in_utterance = False  # words were found since speech was final
        self._last_end: float | None = None  # of the last word, until `UtteranceEnd`
        self._flushed_to = 0.0
        self._finalizes: list[float] = []
        self._endpoint: float | None = None  # where a flush was requested

    def step(self, step: Step) -> list[Found]:
        """Take a frame."""
        self._clock = clock = step.index * self._info.frame_seconds
        if (pause := step.end_of_turn) is not None:
            if pause > self._above:
                if self._quiet_from is None:
                    self._quiet_from = clock - self._info.frame_seconds
                wanted = self._options.endpointing
                if (
                    self._speaking
                    and wanted is not None
                    and self._endpoint is None
                    and clock - self._quiet_from >= wanted
                ):
                    self._endpoint = clock
                    return [Found("Flush")]
            else:
                self._quiet_from = None
                self._speaking |= pause < self._below and step.index > self._info.turns.warmup_frames
        if self._last_end is not None and self._options.utterance_end is not None:
            return self._utterance_end(self._options.utterance_end)
        return []

    def word(self, word: Word | OpenWord) -> list[Found]:
        """Take a word."""
        found = []
        if not self._in_utterance:
            self._in_utterance = self._speaking = True
            if self._options.vad_events:
                found.append(Found("SpeechStarted", end=word.start))
        if isinstance(word, OpenWord):
            changed = self._open is None or self._open.text != word.text
            self._open = word
        else:
            changed = self._open is None or self._open.text != word.text
            self._open = None
            self._words.append(word)
            self._last_end = word.end
            if word.end - self._from >= LONGEST_RANGE:
                return [*found, self._range(word.end)]
        if changed and self._options.interim:
            found.append(self._interim())
        return found

    def end_of_turn(self, time: float) -> list[Found]:
        """Take an end of turn: an endpoint, for a model without pause heads."""
        if self._quiet_from is not None or self._options.endpointing is None or self._endpoint is not None:
            return []
        if not self._speaking:
            return []
        self._endpoint = time
        return [Found("Flush")]

    def finalize(self, time: float) -> None:
        """Note that the client requested all text of the audio up to `time`; the flush follows."""
        self._finalizes.append(time)

    def flushed(self, time: float) -> list[Found]:
        """Take the end of a flush: all text up to `time` is known."""
        self._flushed_to, self._open = time, None
        ends = self._endpoint is not None and self._endpoint <= time + _SAME
        if ends:
            self._endpoint, self._speaking = None, False
        speech_final = ends and self._in_utterance
        asked = len(self._finalizes)
        self._finalizes = [wanted for wanted in self._finalizes if wanted > time + _SAME]
        found = []
        for _ in range(asked - len(self._finalizes)):
            found.append(self._range(time, speech_final=speech_final, from_finalize=True))
            speech_final = False
        if speech_final:
            found.append(self._range(time, speech_final=True))
        if ends:
            self._in_utterance = False
        return found

    def final(self, duration: float) -> list[Found]:
        """Take the end of the audio."""
        self._open = None
        return [self._range(duration, speech_final=self._in_utterance)]

    def _range(self, end: float, *, speech_final: bool = False, from_finalize: bool = False) -> Found:
        """Make the words so far final. The next range begins at `end`."""
        start, words = self._from, self._words
        self._from, self._words = max(start, end), []
        return Found("Results", start, self._from, words, True, speech_final, from_finalize)

    def _interim(self) -> Found:
        words = self._words
        if (opened := self._open) is not None:
            end = max(opened.start, self._clock)
            words = [*words, Word(opened.text, opened.start, end, opened.confidence)]
        return Found("Results", self._from, max(self._from, self._clock), list(words))

    def _utterance_end(self, seconds: float) -> list[Found]:
        last_end = self._last_end
        if last_end is None or self._open is not None or self._endpoint is not None:
            return []
        paused_since_flush = self._quiet_from is not None and self._flushed_to >= self._quiet_from
        known = self._clock if paused_since_flush else self._clock - self._info.delay_seconds - SLACK_SECONDS
        if known - last_end < seconds:
            return []
        self._last_end = None
        self._speaking = self._in_utterance = False
        final = [self._range(self._clock)] if self._words else []
        return [*final, Found("UtteranceEnd", end=last_end)]
