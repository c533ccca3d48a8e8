"""A text to read aloud as streams of tokens: the words of a script, and the machine that gives them to the model.

The model decides when a word begins: it writes `new_word`, and the machine takes the next word of the script and gives
its tokens to the model, one in each step. Otherwise the model, or the machine, pads. With a second text stream, the
model also reads the word that is some words ahead.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from slipstream.errors import TextError
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.numerics import NO_TOKEN, UNGENERATED

MAX_BREAK_SECONDS = 60.0
MAX_TAG = 64
"""Characters after which the start of a tag in a stream of text is taken as words."""


class Encoder(Protocol):
    """A tokenizer."""

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class TokenIds:
    """The special tokens of a model.

    Attributes:
        card: Rows of the text embedding, with the initial token: a pair of tokens is `(second + 1) * card + first`.
        new_word: A word begins.
        pad: No text.
        main: Precedes the first word of a turn of the first speaker.
        other: Precedes the first word of a turn of the second speaker.
        zero: No token, not even padding.
        ungenerated: Not written yet.
    """

    card: int
    new_word: int = WORD_ID
    pad: int = PAD_ID
    main: int = 1
    other: int = 2
    zero: int = NO_TOKEN
    ungenerated: int = UNGENERATED


@dataclass
class Entry:
    """A word of a script, or a break without tokens.

    Attributes:
        tokens: The tokens of the word.
        text: The word.
        padding: Steps after it in which no word may begin.
    """

    tokens: list[int]
    text: str
    padding: int = 0


@dataclass
class ScriptState:
    """Where the reading of a script is.

    Attributes:
        entries: Words and breaks to come. More can be added while the machine runs.
        remaining_padding: Steps in which the model may still pad before it must begin a word.
        forced_padding: Steps in which it must pad.
        queued: Tokens of the present word to come.
        lookahead_queued: Tokens to come in the second stream.
        end_step: The step in which the model asked for a word after the last one.
        consumption_times: The step in which each entry was taken.
        transcript: Each word, and its step.
    """

    entries: deque[Entry]
    remaining_padding: int
    forced_padding: int
    queued: deque[int] = field(default_factory=deque)
    lookahead_queued: deque[int] = field(default_factory=deque)
    end_step: int | None = None
    consumption_times: list[int] = field(default_factory=list)
    transcript: list[tuple[str, int]] = field(default_factory=list)

    def get_tokens_ahead(self, lookahead: int) -> list[int]:
        """The tokens of the word that comes `lookahead` words later, without counting breaks; none after the last."""
        words = (entry.tokens for entry in self.entries if entry.tokens)
        return next((tokens for number, tokens in enumerate(words, start=1) if number == lookahead), [])

    def copy(self) -> ScriptState:
        """A copy that a machine can change without changing this state."""
        return replace(
            self,
            entries=deque(self.entries),
            queued=deque(self.queued),
            lookahead_queued=deque(self.lookahead_queued),
            consumption_times=list(self.consumption_times),
            transcript=list(self.transcript),
        )


@dataclass(frozen=True)
class ScriptMachine:
    """The rules by which the model's text tokens become the text that it reads.

    Attributes:
        token_ids: The special tokens.
        second_stream_ahead: Words by which the second text stream is ahead; 0 without one.
        max_padding: Most steps without a new word after a word.
        initial_padding: Steps before the first word.
    """

    token_ids: TokenIds
    second_stream_ahead: int = 0
    max_padding: int = 6
    initial_padding: int = 2

    def new_state(self, entries: Iterable[Entry]) -> ScriptState:
        """The state at the start of a script."""
        return ScriptState(deque(entries), self.initial_padding, self.initial_padding)

    def process(self, step: int, state: ScriptState, token: int) -> tuple[int, bool]:
        """Turn the model's token of a step into the token that it reads in the next, and change the state.

        Args:
            step: The number of the step, from 0.
            state: Where the reading is.
            token: What the model has written. Anything but `new_word` means padding.

        Returns:
            The token, and whether an entry was taken.
        """
        ids = self.token_ids
        begins, taken = self._begins(state, token), False
        if begins:
            begins, taken = self._next_entry(step, state)
        if begins:
            first = ids.new_word
        else:
            state.remaining_padding = max(0, state.remaining_padding - 1)
            state.forced_padding = max(0, state.forced_padding - 1)
            first = state.queued.popleft() if state.queued else ids.pad
        if not self.second_stream_ahead:
            return first, taken
        second = ids.zero
        if first == ids.new_word:  # in the second stream, so that the word's own tokens come a step earlier
            first, second = state.queued.popleft() if state.queued else ids.pad, ids.new_word
        elif state.lookahead_queued:
            second = state.lookahead_queued.popleft()
        return (second + 1) * ids.card + first, taken

    def _begins(self, state: ScriptState, token: int) -> bool:
        """Whether a word begins: never within a word or a forced pause, always after the longest pause."""
        if state.queued or state.forced_padding > 0:
            return False
        return token == self.token_ids.new_word or state.remaining_padding <= 0

    def _next_entry(self, step: int, state: ScriptState) -> tuple[bool, bool]:
        """Take an entry, and return whether a word begins, and whether there was an entry."""
        if not state.entries:
            # With a second stream, the model reads one more start of a word, as in training.
            begins = self.second_stream_ahead > 0 and state.end_step is None
            state.end_step = step if state.end_step is None else state.end_step
            return begins, False
        entry = state.entries.popleft()
        state.consumption_times.append(step)
        if entry.tokens:
            state.transcript.append((entry.text, step))
            state.queued.extend(entry.tokens)
            if self.second_stream_ahead:
                state.lookahead_queued.extend(state.get_tokens_ahead(self.second_stream_ahead))
            state.remaining_padding = self.max_padding
        state.forced_padding = entry.padding
        return bool(entry.tokens), True


# ------------------------------------------------------------------------------------------------- text to words

_EVENT = re.compile(r'<break\s+time="([0-9]+(?:\.[0-9]*)?)s"\s*/?>|\s+')
_OPEN_TAG = re.compile(rf"<(?:b(?:r(?:e(?:a(?:k(?:\s[^<>]{{0,{MAX_TAG}}})?)?)?)?)?)?$")
_LONGEST_TAG = MAX_TAG + len("<break ") + 1  # a line end may follow it
_REPLACED = str.maketrans({"\u2019": "'", ":": " ", "(": None, ")": None})


def readable(text: str) -> str:
    """A text as words are cut from it: without what a speaker does not read.

    Example:
        >>> readable("(one)")
        'one'
    """
    return text.translate(_REPLACED)


@dataclass
class ScriptReader:
    """Cuts text into the entries of a script, however it arrives.

    White space separates words. `<break time="0.5s"/>` is a pause of that length, at most `MAX_BREAK_SECONDS`.

    Attributes:
        tokenizer: Encodes a word.
        token_ids: The special tokens.
        frame_rate: Steps per second.
        multi_speaker: Whether a turn of another speaker begins with that speaker's token.
        padding_between: Steps after a word in which no other may begin, in addition to those of its tokens.

    Example:
        >>> reader = ScriptReader(tokenizer, TokenIds(card=401), 12.5)
        >>> [entry.text for entry in [*reader.feed("Hel"), *reader.feed("lo wor"), *reader.end()]]
        ['Hello', 'wor']
    """

    tokenizer: Encoder
    token_ids: TokenIds
    frame_rate: float
    multi_speaker: bool = True
    padding_between: int = 0
    _rest: str = ""
    _turn: int = 0
    _turn_began: bool = False
    _speaker: int | None = None

    def feed(self, text: str) -> list[Entry]:
        """Add text, and return the entries that are complete: a word ends with white space or a tag.

        Raises `TextError` for a break of more than `MAX_BREAK_SECONDS`; the text is not added then.
        """
        begin = max(0, len(self._rest) - _LONGEST_TAG)  # before that, the rest has no white space and no tag
        return list(self._complete(self._rest + readable(text), last=False, begin=begin))

    def end(self) -> list[Entry]:
        """End the text, or a turn of it, and return the entries of the rest."""
        entries = list(self._complete(self._rest, last=True))
        if self._rest:
            entries.append(self._word(self._rest))
        self._rest = ""
        return entries

    def next_turn(self) -> list[Entry]:
        """End a turn: the other speaker continues. Returns the entries of the rest."""
        entries = self.end()
        self._turn += 1
        self._turn_began = False
        return entries

    def _complete(self, text: str, last: bool, begin: int = 0) -> Iterator[Entry]:
        tag = None if last else _OPEN_TAG.search(text, max(0, len(text) - _LONGEST_TAG))
        start = 0
        for event in _EVENT.finditer(text, begin):
            if tag is not None and event.start() > tag.start():
                break
            if event.start() > start:
                yield self._word(text[start : event.start()])
            if event[1]:
                seconds = float(event[1])
                if seconds > MAX_BREAK_SECONDS:
                    raise TextError(f"{event[0]!r:.60}: a <break> is at most {MAX_BREAK_SECONDS:g} s long")
                yield Entry([], "", padding=round(seconds * self.frame_rate))
            start = event.end()
        self._rest = text[start:]

    def _word(self, word: str) -> Entry:
        tokens = list(self.tokenizer.encode(word))
        if not self._turn_began:
            speaker = self._turn % 2
            if self.multi_speaker and speaker != self._speaker:
                self._speaker = speaker
                tokens.insert(0, (self.token_ids.main, self.token_ids.other)[speaker])
            self._turn_began = True
        padding = max(0, self.padding_between + len(tokens) - 1) if self.padding_between > 0 else 0
        return Entry(tokens, word, padding)


def script_to_entries(
    tokenizer: Encoder,
    token_ids: TokenIds,
    frame_rate: float,
    script: Sequence[str],
    multi_speaker: bool = True,
    padding_between: int = 0,
) -> list[Entry]:
    """Cut a script of turns into entries.

    Args:
        tokenizer: Encodes a word.
        token_ids: The special tokens.
        frame_rate: Steps per second.
        script: The turns of the first speaker and of the second, one after the other.
        multi_speaker: As for `ScriptReader`.
        padding_between: As for `ScriptReader`.

    Returns:
        The words and breaks.
    """
    reader = ScriptReader(tokenizer, token_ids, frame_rate, multi_speaker, padding_between)
    return [entry for turn in script for entry in [*reader.feed(turn), *reader.next_turn()]]
