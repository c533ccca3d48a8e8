"""A session of text to speech, without thread or device: text goes in, tokens are decided, audio and words come out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeAlias

import numpy as np

from slipstream.arrays import FloatArray, IntArray
from slipstream.events import Word
from slipstream.model.numerics import UNGENERATED
from slipstream.model.script import Entry, ScriptMachine, ScriptReader, ScriptState, TokenIds
from slipstream.model.speech import SpeechRunner, Voice
from slipstream.model.text import Tokenizer


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """How a text is read.

    Attributes:
        padding_between: Steps between words, in addition to those of their tokens. With 1, words are clearer.
        max_padding: Most steps without a new word.
        initial_padding: Steps before the first word.
        final_padding: Frames of audio after the last word.
        seed: Decides the tokens that are drawn.
        max_seconds: The audio ends after this time at the latest.
    """

    padding_between: int = 1
    max_padding: int = 8
    initial_padding: int = 2
    final_padding: int = 4
    seed: int = 0
    max_seconds: float = 2400.0


@dataclass(frozen=True, slots=True)
class Audio:
    """A frame of speech. `samples`: float32 `[S]` at the model's rate; `start`: its time in seconds."""

    samples: FloatArray
    start: float


SpeechEvent: TypeAlias = Audio | Word


class Reading:
    """One text that is read aloud. Times are seconds of the audio that the session has given.

    Args:
        runner: The model, for its configuration only.
        tokenizer: Its tokenizer.
        voice: The voice.
        options: How the text is read.
    """

    def __init__(self, runner: SpeechRunner, tokenizer: Tokenizer, voice: Voice | None, options: SpeechOptions) -> None:
        config = runner.config
        self.voice, self.options = voice, options
        self._rate = config.codec.frame_rate
        self._latency = runner.latency_steps
        self._lookahead = config.second_stream_ahead
        ids = TokenIds(card=config.lm.text_vocab + 1)
        self._machine = ScriptMachine(ids, self._lookahead, options.max_padding, options.initial_padding)
        self._script = ScriptReader(
            tokenizer, ids, self._rate, config.speakers_by_condition, padding_between=options.padding_between
        )
        self._state: ScriptState = self._machine.new_state([])
        self._forced_KT = _delayed(voice, config.lm.stream_delays[1 : runner.codebooks + 1], config.delay_steps)
        self._prefix = 0 if voice is None else voice.prefix_frames
        self._step = 0
        self._words = 0  # of the transcript, that were events
        self._ended = False
        self._entries = self._flushed = 0  # that came so far, and that came before the last flush
        self._read_until = 0  # this step, so that the audio of flushed words comes out

    def feed(self, text: str) -> None:
        """Add text. A word is complete with the white space after it."""
        self._add(self._script.feed(text))

    def turn(self) -> None:
        """The other speaker continues, with a model of two voices."""
        self._add(self._script.next_turn())

    def flush(self) -> None:
        """Read the text so far to its end, without waiting for more. More may follow."""
        self._add(self._script.end())
        if self._entries > self._flushed:
            self._flushed, self._read_until = self._entries, 0
            self._check_flush()

    def end(self) -> None:
        """There is no more text."""
        self._add(self._script.end())
        self._ended = True

    @property
    def ready(self) -> bool:
        """Whether the next step depends on no text that is yet to come."""
        if self._ended:
            return not self.finished
        state = self._state
        if self._taken < self._flushed or self._step < self._read_until:
            return True
        if self._step < self._prefix or state.queued or state.forced_padding > 0:
            return True
        if not state.entries:
            return False
        return not state.entries[0].tokens or self._lookahead == 0 or self._has_words_ahead()

    @property
    def finished(self) -> bool:
        """Whether all audio has been given."""
        if not self._ended:
            return False
        if not self._state.entries and not self._state.consumption_times:
            return True  # no text at all
        if self._step - self._latency - self._prefix >= self.options.max_seconds * self._rate:
            return True
        end = self._state.end_step
        return end is not None and self._step >= end + self._latency + self.options.final_padding

    def decide(self, token: int) -> tuple[int, IntArray]:
        """Turn the model's text token into the one that it reads next, and return the audio tokens that are given."""
        step, forced_KT = self._step, self._forced_KT
        self._step += 1
        forced = forced_KT[:, step] if step < forced_KT.shape[1] else np.full(len(forced_KT), UNGENERATED)
        if step < self._prefix:
            return self._machine.token_ids.zero, forced
        text, _ = self._machine.process(step, self._state, token)
        self._check_flush()
        return text, forced

    def advance(self, samples: FloatArray | None) -> list[SpeechEvent]:
        """Take the output of a step, and return the events: the audio, and words whose end is known."""
        events: list[SpeechEvent] = []
        frame = self._step - 1 - self._latency - self._prefix
        if samples is not None and frame >= 0:
            events.append(Audio(samples, frame / self._rate))
        return events + self._new_words()

    def copy(self) -> Reading:
        """A copy that continues from here on its own."""
        copy = object.__new__(Reading)
        copy.__dict__.update(self.__dict__)
        copy._state = self._state.copy()
        copy._script = replace(self._script)
        return copy

    def _add(self, entries: list[Entry]) -> None:
        self._entries += len(entries)
        self._state.entries.extend(entries)
        if entries:
            self._state.end_step = None  # which a flush may have reached

    @property
    def _taken(self) -> int:
        """Words and breaks that the model has begun to read."""
        return self._entries - len(self._state.entries)

    def _check_flush(self) -> None:
        if not self._read_until and self._taken >= self._flushed > 0:
            rest = len(self._state.queued) + self._state.forced_padding
            self._read_until = self._step + rest + self._latency + self.options.final_padding

    def _has_words_ahead(self) -> bool:
        words = (entry for entry in self._state.entries if entry.tokens)
        return next(islice(words, self._lookahead, None), None) is not None

    def _new_words(self) -> list[SpeechEvent]:
        words, end = self._state.transcript, self._state.end_step
        out: list[SpeechEvent] = []
        while self._words < len(words):
            text, start = words[self._words]
            last = self._words + 1 == len(words)
            stop = end if last else words[self._words + 1][1]
            if stop is None:
                break
            out.append(Word(text, (start - self._prefix) / self._rate, (stop - self._prefix) / self._rate))
            self._words += 1
        return out


def _delayed(voice: Voice | None, delays: tuple[int, ...], delay_steps: int) -> IntArray:
    """The codes of a recording in the steps in which the model would write them."""
    if voice is None or voice.prefix is None:
        return np.full((len(delays), 0), UNGENERATED)
    T = voice.prefix_frames
    out = np.full((len(delays), T + delay_steps + max(delays)), UNGENERATED)
    for k, delay in enumerate(delays):
        out[k, delay + delay_steps : delay + delay_steps + T] = voice.prefix[k]
    return out
