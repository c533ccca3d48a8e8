"""Search for the text of one stream: several hypotheses, each in a slot of the model, with bonuses for keywords."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from slipstream.hints import Hints, Keyword
from slipstream.hints.keywords import Biases, KeywordTrie, Place
from slipstream.hints.ngram import Context, NGram
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.runner import Choice
from slipstream.model.text import Tokenizer

MAX_PENDING = 12
"""Frames after which a token is written even if not all hypotheses agree: 0.96 s."""
NO_BIASES = Biases(np.zeros(0, np.int64), np.zeros(0, np.float32))


@dataclass(frozen=True, slots=True)
class Rival:
    """A word of a hypothesis that is not the best.

    Attributes:
        place: Where it begins: 0 is the first token that is not written yet.
        text: Its text.
        nats: By how much its hypothesis is less likely than the best one.
    """

    place: int
    text: str
    nats: float


Written = tuple[int, float]
"""A token and its log-probability."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from a step.

    Attributes:
        written: Tokens that are certain now, the oldest first.
        copies: Pairs of rows: the state of the first goes into the second, in this order.
        forced: Rows and the token that each wrote, where it is not the one that was picked; after the copies.
        best: The row of the best hypothesis.
        token: Its newest token.
    """

    written: list[Written]
    copies: list[tuple[int, int]]
    forced: list[tuple[int, int]]
    best: int
    token: int


@dataclass(frozen=True, slots=True)
class _Hypothesis:
    """One text. `pending`: its tokens that are not written yet; `text`: their bytes."""

    row: int
    score: float
    pending: tuple[Written, ...]
    text: bytes
    place: Place | None
    context: Context | None
    picked: int = PAD_ID
    """The token that the slot picked in the last step."""

    @property
    def token(self) -> int:
        return self.pending[-1][0]


class Search:
    """The hypotheses of one stream. With a width of 1 and no keywords it is the greedy choice.

    Two hypotheses with the same text are one: the better one stays, with its timing. A token is written where all
    hypotheses agree on it, or after `MAX_PENDING` frames as the best one has it.

    Args:
        width: Number of hypotheses that are kept, each in its own row.
        tokenizer: The tokenizer of the model.
        trie: The keywords.
        lm: A model of the user's own text.
    """

    def __init__(
        self, width: int, tokenizer: Tokenizer, trie: KeywordTrie | None = None, lm: NGram | None = None
    ) -> None:
        self.width = width
        self._tokenizer = tokenizer
        self._trie = trie
        self._lm = lm
        self._alive = [_Hypothesis(0, 0.0, (), b"", Place(trie.root) if trie else None, lm.start if lm else None)]
        self._begun: tuple[int, bytes] | None = None  # the word that the written tokens have begun: place and text

    @property
    def rivals(self) -> list[Rival]:
        """Words that the other hypotheses have completed since the last written token."""
        best = self._alive[0]
        return [
            Rival(place, text, max(0.0, best.score - one.score))
            for one in self._alive[1:]
            for place, text in self._words(one.pending)
        ]

    def biases(self, row: int) -> Biases:
        """Return what to add to the scores of a row in the next step."""
        for one in self._alive:
            if one.row == row and self._trie is not None and one.place is not None:
                return self._trie.biases(one.place.node)
        return NO_BIASES

    def advance(self, choices: Sequence[Choice]) -> Decision:
        """Take the choices of each row in a step."""
        grown: dict[bytes, _Hypothesis] = {}
        for one in self._alive:
            for following in self._following(one, choices[one.row]):
                known = grown.get(following.text)
                if known is None or following.score > known.score:
                    grown[following.text] = following
        chosen = sorted(grown.values(), key=lambda one: -one.score)[: self.width]
        copies = self._place(chosen)
        written = self._settle()
        best = self._alive[0]
        forced = [(one.row, one.token) for one in self._alive if one.token != one.picked]
        self._write(written)
        return Decision(written, copies, forced, best.row, best.token)

    def end(self) -> list[Written]:
        """Choose the best hypothesis. Returns its tokens that were not written yet."""
        best = self._alive[0]
        self._alive = [best]
        self._write(list(best.pending))
        return list(best.pending)

    def use(self, other: Search) -> None:
        """Take the keywords of another search; phrases that have begun are left."""
        self._trie = other._trie
        self._alive = [replace(one, place=Place(self._trie.root) if self._trie else None) for one in self._alive]

    def copy(self) -> Search:
        """Return an independent search in the same state."""
        other = copy.copy(self)
        other._alive = list(self._alive)
        return other

    def _following(self, one: _Hypothesis, choice: Choice) -> list[_Hypothesis]:
        options = dict(zip(choice.tokens, choice.logprobs, strict=True))
        options.setdefault(choice.plain, choice.plain_logprob)
        return [self._extend(one, choice, token, logprob) for token, logprob in options.items()]

    def _extend(self, one: _Hypothesis, choice: Choice, token: int, logprob: float) -> _Hypothesis:
        score, place, context = one.score + logprob, one.place, one.context
        if self._trie is not None and place is not None:
            place, gain = self._trie.gain(place, token, logprob, choice.plain, choice.plain_logprob)
            score += gain
        text = b"" if token in (PAD_ID, WORD_ID) else b" ".join(self._tokenizer.segments(token) or ())
        if self._lm is not None and context is not None:
            context, gain = self._lm.extend(context, text, pause=token in (PAD_ID, WORD_ID))
            score += gain
        pending = (*one.pending, (token, logprob))
        return _Hypothesis(one.row, score, pending, one.text + text, place, context, choice.token)

    def _place(self, chosen: list[_Hypothesis]) -> list[tuple[int, int]]:
        """Give each hypothesis a row. Returns the rows to copy: the first of a row's hypotheses stays in it."""
        taken: set[int] = set()
        for one in chosen:
            taken.add(one.row)
        free = [row for row in range(self.width) if row not in taken]
        copies, placed, stayed = [], [], set()
        for one in chosen:
            if one.row in stayed:
                copies.append((one.row, free[0]))
                placed.append(replace(one, row=free.pop(0)))
            else:
                stayed.add(one.row)
                placed.append(one)
        self._alive = placed
        return copies

    def _settle(self) -> list[Written]:
        """Return the tokens that all hypotheses share, and drop those that differ from the best for too long."""
        best = self._alive[0]
        if len(best.pending) > MAX_PENDING:
            self._alive = [one for one in self._alive if one.pending[0][0] == best.pending[0][0]]
        shared = 0
        for tokens in zip(*(one.pending for one in self._alive), strict=True):
            if len({token for token, _ in tokens}) > 1:
                break
            shared += 1
        return list(best.pending[:shared])

    def _words(self, pending: Sequence[Written]) -> list[tuple[int, str]]:
        """Return the complete words of tokens and where each begins: another word, or two pads, have followed."""
        found, begun, pads = [], self._begun, 0
        for place, (token, _) in enumerate(pending):
            segments = None if token in (PAD_ID, WORD_ID) else self._tokenizer.segments(token)
            pads = pads + 1 if token == PAD_ID else 0
            if begun and (token == WORD_ID or pads == 2 or (segments and len(segments) > 1)):
                found.append((begun[0], begun[1].decode("utf-8", "ignore").strip()))
                begun = None
            if segments:
                begun = (begun[0], begun[1] + b"".join(segments)) if begun else (place, b" ".join(segments))
        return [(place, text) for place, text in found if text]

    def _begin_word(self, written: list[Written]) -> None:
        """Follow the written tokens to the word that they leave open."""
        begun = self._begun
        for place, (token, _) in enumerate(written):
            segments = None if token in (PAD_ID, WORD_ID) else self._tokenizer.segments(token)
            if token == WORD_ID or (segments and len(segments) > 1):
                begun = None
            if segments:
                begun = (begun[0], begun[1] + b"".join(segments)) if begun else (place, b" ".join(segments))
        self._begun = begun and (begun[0] - len(written), begun[1])

    def _write(self, written: list[Written]) -> None:
        if not written:
            return
        self._begin_word(written)
        texts = (b" ".join(self._tokenizer.segments(token) or ()) for token, _ in written)
        length = sum(
            len(text) for (token, _), text in zip(written, texts, strict=True) if token not in (PAD_ID, WORD_ID)
        )
        base = self._alive[0].score
        self._alive = [
            replace(one, pending=one.pending[len(written) :], text=one.text[length:], score=one.score - base)
            for one in self._alive
        ]


def new_search(hints: Hints, tokenizer: Tokenizer) -> Search | None:
    """Return the search of a session; None where the greedy choice is enough."""
    if not hints.steers:
        return None
    trie = _trie(hints.phrases, tokenizer) if hints.phrases else None
    return Search(hints.width, tokenizer, trie, _ngram(hints.lm, tokenizer) if hints.lm else None)


@lru_cache(maxsize=16)
def _trie(phrases: tuple[Keyword, ...], tokenizer: Tokenizer) -> KeywordTrie:
    return KeywordTrie(phrases, tokenizer)


@lru_cache(maxsize=4)
def _ngram(text: str, tokenizer: Tokenizer) -> NGram:
    return NGram(text, tokenizer)
