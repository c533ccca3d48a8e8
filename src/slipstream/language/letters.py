"""How likely a word is in a language: a model of its letters, each given up to four before it.

A table has the counts of the most frequent sequences of up to five letters in texts of a language; `_` is the
start and the end of a word. `recipes/languages/table.py` makes one.
"""

from __future__ import annotations

import json
import math
import unicodedata
from functools import lru_cache
from pathlib import Path

from slipstream.errors import ConfigError

ORDER = 5
"""Letters of the longest sequence."""
EDGE = "_"

_TABLES = Path(__file__).parent / "tables"
_ALPHABET = 60  # the number of letters that an unknown one may be
_FEW_LETTERS, _FEW_SEQUENCES = 200.0, 10.0  # counts that weigh as much as the estimate from shorter sequences
_QUOTES = str.maketrans({"’": "'", "‘": "'"})  # noqa: RUF001


def known_languages() -> tuple[str, ...]:
    """Return the codes of the languages that have a table.

    Example:
        >>> known_languages()
        ('en', 'fr')
    """
    return tuple(sorted(path.stem for path in _TABLES.glob("*.json")))


def letters(text: str) -> str:
    """Return the letters of a word, in lower case, with apostrophes and hyphens inside it; possibly none."""
    composed = unicodedata.normalize("NFC", text.lower().translate(_QUOTES))
    return "".join(c for c in composed if c in "'-" or unicodedata.category(c)[0] in "LM").strip("'-")


class LetterModel:
    """The letters of one language.

    Args:
        language: Its ISO 639-1 code.

    Raises:
        ConfigError: The language has no table.
    """

    def __init__(self, language: str) -> None:
        path = _TABLES / f"{language}.json"
        if not path.is_file():
            raise ConfigError(f"language {language!r} has no table of letters: expected {', '.join(known_languages())}")
        self.language = language
        self._counts: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))["counts"]
        self._followed: dict[str, int] = {}
        for sequence, count in self._counts.items():
            self._followed[sequence[:-1]] = self._followed.get(sequence[:-1], 0) + count

    @classmethod
    @lru_cache(maxsize=32)
    def of(cls, language: str) -> LetterModel:
        """Return the model of a language, read once."""
        return cls(language)

    def logprob(self, text: str, *, complete: bool = True) -> float:
        """Return the log-probability of the letters of a word.

        Args:
            text: The letters, as `letters` returns them.
            complete: Whether the word ends after them.
        """
        text = f"{EDGE}{text}{EDGE if complete else ''}"
        return sum(math.log(self._letter(text, at)) for at in range(1, len(text)))

    def _letter(self, text: str, at: int) -> float:
        """Return the probability of a letter given those before it: longer sequences refine shorter ones."""
        probability = 1 / _ALPHABET
        counts = self._counts
        for first in range(at, max(-1, at - ORDER), -1):
            count = counts.get(text[first : at + 1], 0)
            followed = self._followed.get(text[first:at], 0)
            before = max(followed, counts.get(text[first:at], 0))
            if not before:
                break
            # Rare sequences are not in the table: the remaining probability is divided by the shorter ones, too.
            rare = before - followed + (_FEW_LETTERS if first == at else _FEW_SEQUENCES)
            probability = (count + rare * probability) / (followed + rare)
        return probability
