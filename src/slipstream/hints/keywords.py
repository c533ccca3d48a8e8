"""Keywords as a trie over the text of tokens, and the bonus of each token that continues one."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from slipstream.arrays import FloatArray, IntArray
from slipstream.hints import Keyword
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.runner import MAX_BIASED
from slipstream.model.text import Tokenizer

LETTER_BONUS = 1.2
"""Nats for each letter of a phrase with weight 1 that the text so far agrees with, after the first ones."""
COMMON_LETTERS = 2
"""The first letters of a phrase earn nothing: a first piece such as `The` or `No` is mostly another word."""
MAX_BONUS = 6.0
"""The most that a phrase of weight 1 gets: its odds rise by a factor of 400."""
SURE_LETTERS = 5
"""A shorter phrase gets less for each letter: short words are like the start of many others."""
SURE = 0.7
"""Probability of a token from which the model is sure of it: no bonus replaces it."""


@dataclass(frozen=True, slots=True)
class Biases:
    """Tokens and what to add to their scores. `id_N`: int64, different ones; `bias_N`: nats, float32."""

    id_N: IntArray
    bias_N: FloatArray


@dataclass(slots=True, eq=False)
class Node:
    """A place in the phrases: what has been written of them.

    Attributes:
        bonus: What the text so far has earned; it is taken back where a phrase is not completed.
        limit: What the phrase will have earned at its end.
        complete: Whether a phrase ends here.
        letters: Number of letters so far.
        children: The next letters, as bytes of UTF-8; each word follows a space.
        usable: Whether tokens can lead from here to the end of a phrase.
        tokens: Where each token leads, once known.
        biases: What they get, once known.
    """

    bonus: float = 0.0
    limit: float = 0.0
    complete: bool = False
    letters: int = 0
    children: dict[int, Node] = field(default_factory=dict)
    tokens: dict[int, Node] | None = None
    usable: bool = False
    biases: Biases | None = None

    @property
    def between_words(self) -> bool:
        """Whether the next letter of the phrase begins a word, after a word that is complete."""
        return _SPACE in self.children and self.letters > 0


class Place(NamedTuple):
    """Where a text is in the phrases.

    Attributes:
        node: What has been written of a phrase.
        doubt: By how many nats the tokens of the phrase are less likely, in all, than the best ones without a bonus.
    """

    node: Node
    doubt: float = 0.0


_SPACE = ord(" ")
_SURE = math.log(SURE)


class KeywordTrie:
    """The phrases of one session, for the tokenizer of its model.

    A node is a position in the letters of the phrases, so that every segmentation of a phrase into tokens leads through
    it. A phrase is written as given, in lower case and with a capital first letter; variants that the vocabulary cannot
    write are left out. Nodes learn their tokens when they are first reached.

    Args:
        keywords: The phrases.
        tokenizer: The tokenizer of the model.
    """

    def __init__(self, keywords: Iterable[Keyword], tokenizer: Tokenizer) -> None:
        self.root = Node()
        self._vocabulary = _Vocabulary.of(tokenizer)
        for keyword in keywords:
            for text in _casings(keyword.text):
                self._add(text, keyword.weight)

    def biases(self, node: Node) -> Biases:
        """Return what to add to the scores of the next token after `node`."""
        if node.biases is None:
            bonuses = {token: child.bonus for token, child in self._tokens(node).items()}
            if node is self.root or node.between_words or node.complete:
                for token, child in self._tokens(self.root).items():
                    bonuses[token] = max(bonuses.get(token, 0.0), child.bonus)
            largest = sorted(bonuses.items(), key=lambda item: -item[1])[:MAX_BIASED]
            ids = np.array([token for token, _ in largest], np.int64)
            node.biases = Biases(ids, np.array([bonus for _, bonus in largest], np.float32))
        return node.biases

    def follow(self, node: Node, token: int) -> Node:
        """Return the place after `token`; the root if it continues no phrase."""
        if token in (PAD_ID, WORD_ID):
            return node if node is self.root or node.between_words else self.root
        child = self._tokens(node).get(token)
        return child or self._tokens(self.root).get(token) or self.root

    def gain(self, place: Place, token: int, logprob: float, plain: int, plain_logprob: float) -> tuple[Place, float]:
        """Return the place after `token`, and by how much the score of the text changes.

        A phrase that continues earns more; one that is left unfinished loses what it has earned. No bonus replaces a
        token that the model is sure of, or makes a word where the model writes none: it starts one only where `plain`,
        the best token without a bonus, starts one. The tokens of a phrase may together be as doubtful as one bonus of
        the whole phrase makes up for: each of them alone gets that much.
        """
        node = place.node
        following = self.follow(node, token)
        if following is node:
            return place, 0.0
        begins = token in self._vocabulary.starts
        doubt = max(0.0, plain_logprob - logprob) + (place.doubt if token in self._tokens(node) else 0.0)
        if token != plain and (
            plain_logprob >= _SURE or (begins and plain not in self._vocabulary.starts) or doubt > following.limit
        ):
            following = self.root
        kept = node.complete and (begins or token in (PAD_ID, WORD_ID)) and token not in self._tokens(node)
        after = Place(self.root) if following is self.root else Place(following, doubt)
        return after, following.bonus - (0.0 if kept else node.bonus)

    def _add(self, text: str, weight: float) -> None:
        encoded = b" " + b" ".join(text.encode().split())
        letters = len(text.replace(" ", ""))
        each = LETTER_BONUS * weight * min(1.0, (letters - 1) / SURE_LETTERS)
        common = min(COMMON_LETTERS, letters - 1)
        limit = min(MAX_BONUS * weight, each * (letters - common))
        usable = self._vocabulary.usable(encoded)
        if not usable[0]:
            return
        node = self.root
        for place, byte in enumerate(encoded):
            node = node.children.setdefault(byte, Node())
            node.letters = place - encoded[: place + 1].count(b" ") + 1
            node.bonus = max(node.bonus, min(limit, each * (node.letters - common)))
            node.limit = max(node.limit, limit)
            node.usable |= usable[place + 1]
        node.complete = True

    def _tokens(self, node: Node) -> dict[int, Node]:
        if node.tokens is None:
            node.tokens = {token: end for token, end in self._vocabulary.walk(node).items() if end.usable}
        return node.tokens


def _casings(text: str) -> list[str]:
    """Return the ways in which a phrase may be written, without repetition."""
    return list(dict.fromkeys([text, text.lower(), text[:1].upper() + text[1:]]))


@dataclass(slots=True, eq=False)
class _Letter:
    """A place in the text of tokens: those that end here, and the letters that may follow."""

    tokens: list[int] = field(default_factory=list)
    children: dict[int, _Letter] = field(default_factory=dict)


class _Vocabulary:
    """The tokens of a tokenizer by their text, in which each word follows a space."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._root = _Letter()
        self._texts: set[bytes] = set()
        self.starts: set[int] = set()
        for token in range(tokenizer.vocab_size):
            text = b" ".join(tokenizer.segments(token) or ())
            if text.startswith(b" "):
                self.starts.add(token)
            self._texts.add(text)
            place = self._root
            for byte in text:
                place = place.children.setdefault(byte, _Letter())
            if text:
                place.tokens.append(token)
        self._longest = max(map(len, self._texts))

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _Vocabulary:
        """Return the vocabulary of a tokenizer, which is read once."""
        found = _VOCABULARIES.get(tokenizer)
        if found is None:
            found = _VOCABULARIES[tokenizer] = cls(tokenizer)
        return found

    def usable(self, text: bytes) -> list[bool]:
        """Return for each place in `text`, and its end, whether tokens lead from it to the end."""
        usable = [False] * len(text) + [True]
        for start in range(len(text) - 1, -1, -1):
            ends = range(start + 1, min(len(text), start + self._longest) + 1)
            usable[start] = any(usable[end] and text[start:end] in self._texts for end in ends)
        return usable

    def walk(self, node: Node) -> dict[int, Node]:
        """Return each token whose text leads from `node` to another one, and where."""
        found: dict[int, Node] = {}
        stack = [(self._root, node)]
        while stack:
            place, at = stack.pop()
            for byte, child in at.children.items():
                if (below := place.children.get(byte)) is not None:
                    found |= dict.fromkeys(below.tokens, child)
                    stack.append((below, child))
        return found


_VOCABULARIES: weakref.WeakKeyDictionary[Tokenizer, _Vocabulary] = weakref.WeakKeyDictionary()
