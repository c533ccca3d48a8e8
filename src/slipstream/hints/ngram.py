"""A small language model of the user's own text, fused into the search at the ends of words."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from slipstream.errors import ConfigError
from slipstream.model.text import Tokenizer

ORDER = 5
"""Tokens of an n-gram: about two words."""
SCALE = 0.5
"""Weight of the n-grams' log-probability relative to the model's."""
MAX_TEXT_BYTES = 20_000_000


@dataclass(frozen=True, slots=True)
class Context:
    """The last tokens of a text, and the word that is being written after them."""

    tokens: tuple[int, ...] = ()
    word: bytes = b""


@dataclass(eq=False)
class NGram:
    """Token n-grams with Witten-Bell smoothing, in memory.

    What counts is how much likelier the last tokens make a word than it is without them and without the text: words
    of any length compare, and no text gets a penalty for being new.

    Args:
        text: The user's text, one sentence or paragraph per line.
        tokenizer: The tokenizer of the model.

    Raises:
        ConfigError: The text has no words, or is too long.
    """

    text: str = field(repr=False)
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        if len(self.text) > MAX_TEXT_BYTES:
            raise ConfigError(f"the text has {len(self.text)} characters: at most {MAX_TEXT_BYTES} are possible")
        self.start = Context()
        self._counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for line in self.text.splitlines():
            tokens = [token for word in line.split() for token in self._encode(word)]
            for place, token in enumerate(tokens):
                for order in range(min(ORDER, place + 1)):
                    self._counts[tuple(tokens[place - order : place])][token] += 1
        if not self._counts:
            raise ConfigError("the text has no words")
        self._totals = {context: sum(counts.values()) for context, counts in self._counts.items()}
        self._known: dict[tuple[tuple[int, ...], bytes], tuple[float, tuple[int, ...]]] = {}

    def extend(self, context: Context, text: bytes, *, pause: bool) -> tuple[Context, float]:
        """Return the context after a token with this `text`, and what the words that it completes gain.

        Args:
            context: What was written before.
            text: The token's text, with a space before each word.
            pause: Whether the token is a pad or `WORD_ID`, which ends a word.
        """
        gain = 0.0
        if pause:
            return self._complete(context) if context.word else (context, gain)
        first, *words = text.split(b" ")
        context = Context(context.tokens, context.word + first)
        for word in words:
            context, more = self._complete(context)
            gain += more
            context = Context(context.tokens, word)
        return context, gain

    def _complete(self, context: Context) -> tuple[Context, float]:
        if not context.word:
            return context, 0.0
        key = context.tokens, context.word
        if key not in self._known:
            if len(self._known) > 100_000:
                self._known.clear()
            self._known[key] = self._score(*key)
        gain, tokens = self._known[key]
        return Context(tokens), gain

    def _score(self, tokens: tuple[int, ...], word: bytes) -> tuple[float, tuple[int, ...]]:
        gain = 0.0
        for token in self._encode(word.decode("utf-8", "ignore")):
            gain += math.log(self._probability(tokens, token) / self._probability((), token))
            tokens = (*tokens, token)[-(ORDER - 1) :]
        return SCALE * gain, tokens

    def _probability(self, context: tuple[int, ...], token: int) -> float:
        """Return the probability of a token after a context, interpolated with all shorter contexts."""
        probability = 1 / self.tokenizer.vocab_size
        for length in range(len(context) + 1):
            part = context[len(context) - length :]
            if (counts := self._counts.get(part)) is None:
                break
            total, kinds = self._totals[part], len(counts)
            probability = (counts[token] + kinds * probability) / (total + kinds)
        return probability

    def _encode(self, word: str) -> list[int]:
        return encode(self.tokenizer, word)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Convert text to tokens, in lower case if the vocabulary cannot write it otherwise."""
    tokens = tokenizer.encode(text)
    return tokens if tokenizer.decode(tokens) == text else tokenizer.encode(text.lower())


def read(paths: Iterable[str]) -> str:
    """Return the text of some files."""
    parts = []
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                parts.append(file.read())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot read the text: {error}") from error
    return "\n".join(parts)
