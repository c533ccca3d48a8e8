"""Which language the words of a stream are in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from slipstream.errors import ConfigError
from slipstream.events import Word
from slipstream.language.letters import LetterModel, known_languages, letters

AUTO = "auto"
"""In a list of languages: any language that has a table."""

SHARPNESS = 0.6
"""Factor of a word's evidence: letters are not independent. Chosen with `MOST_NATS` on single words of sentences."""
MOST_NATS = 6.0
"""The most evidence of one word against a language: names and misspelt words are in any text."""
MEMORY = 0.7
"""What the evidence of a word weighs for the word after it."""


def candidates(languages: Iterable[str]) -> tuple[str, ...]:
    """Return the codes that a list of languages means: `auto` is all with a table, `fr-CA` is `fr`.

    Example:
        >>> candidates(["auto"])
        ('en', 'fr')
    """
    codes = (code for name in languages for code in (known_languages() if name == AUTO else (primary(name),)))
    return tuple(dict.fromkeys(codes))


def primary(code: str) -> str:
    """Return the language of a code that may have a region: `fr` of `fr-CA`."""
    return code.replace("_", "-").split("-")[0].lower()


def check_languages(languages: Iterable[str], model: Sequence[str]) -> None:
    """Raise `ConfigError` for a language that a model with languages of its own cannot be set to.

    Args:
        languages: Those of `Hints`.
        model: Those of `LMConfig.languages`; for a model without any, all languages are tags.

    Example:
        >>> check_languages(["fr-CA", "auto"], model=["en", "fr"])
        >>> check_languages(["de"], model=[])
    """
    for language in languages if model else ():
        if language != AUTO and primary(language) not in model:
            known = ", ".join([*model, AUTO])
            raise ConfigError(f"language {language!r}: expected one of this model ({known}), or none for any other")


@dataclass(frozen=True, slots=True)
class Guess:
    """A language, and the probability that it is the right one of those that are possible."""

    language: str
    confidence: float


class Identifier:
    """Identifies the language of words.

    Args:
        languages: Their codes. With one, everything is in it. If one of several has no table, nothing is identified.

    Example:
        >>> Identifier(["en", "fr"]).identify(["le", "chat", "dort"]).language
        'fr'
    """

    def __init__(self, languages: Iterable[str]) -> None:
        self.languages = candidates(languages)
        known = len(self.languages) == 1 or set(self.languages) <= set(known_languages())
        self._models = [LetterModel.of(code) for code in self.languages] if known and len(self.languages) > 1 else []

    def evidence(self, text: str) -> list[float]:
        """Return the evidence of a word for each language, in nats, 0 for the most likely one."""
        spelled = letters(text)
        if not self._models or not spelled:
            return [0.0] * len(self.languages)
        logprobs = [SHARPNESS * model.logprob(spelled) for model in self._models]
        best = max(logprobs)
        return [max(-MOST_NATS, logprob - best) for logprob in logprobs]

    def guess(self, evidence: Sequence[float]) -> Guess | None:
        """Return the most likely language by the summed evidence of some words; None where nothing is identified."""
        if len(self.languages) == 1:
            return Guess(self.languages[0], 1.0)
        if not self._models:
            return None
        best = max(evidence)
        number = evidence.index(best)
        return Guess(self.languages[number], 1 / sum(math.exp(one - best) for one in evidence))

    def identify(self, words: Iterable[str]) -> Guess | None:
        """Return the language of some words together."""
        total = [0.0] * len(self.languages)
        for word in words if self._models else ():
            total = _add(total, self.evidence(word))
        return self.guess(total)


class LanguageTracker:
    """Tags the words of one stream with their language: each with those before it, of which each weighs less.

    Args:
        languages: Those that are possible; with none, nothing is tagged.
    """

    def __init__(self, languages: Iterable[str] = ()) -> None:
        self.set_languages(languages)

    def set_languages(self, languages: Iterable[str]) -> None:
        """Change the languages, for the words to come."""
        self._identifier = Identifier(languages)
        self._recent = [0.0] * len(self._identifier.languages)

    def identify(self, words: Iterable[Word]) -> Guess | None:
        """Return the language of some words together."""
        return self._identifier.identify(word.text for word in words)

    def tag(self, word: Word) -> Word:
        """Return the next word with its language."""
        if not self._identifier.languages:
            return word
        evidence = self._identifier.evidence(word.text)
        self._recent = _add([MEMORY * nats for nats in self._recent], evidence)
        guess = self._identifier.guess(self._recent)
        return replace(word, language=guess.language, language_confidence=guess.confidence) if guess else word


def _add(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip(left, right, strict=True)]
