"""What is known about the speech of one session, and how it changes the choice of text tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from slipstream.errors import ConfigError
from slipstream.language.identify import AUTO

MAX_KEYWORDS = 1000
MAX_KEYWORD_LENGTH = 200
MAX_PROMPT_LENGTH = 4000
MAX_BEAM = 8
MAX_WEIGHT = 10.0
"""Ten times the bonus of a keyword without a weight."""
LANGUAGE = re.compile(r"[a-z]{2,3}([-_][a-z0-9]{1,8})*", re.IGNORECASE)
"""A code of a language, which may have a region, such as `fr` or `fr-CA`."""


@dataclass(frozen=True, slots=True)
class Keyword:
    """A word or phrase that is likely to occur.

    Args:
        text: The phrase, as it should be written.
        weight: Factor of the bonus that its tokens get.

    Raises:
        ConfigError: The text is empty or too long, or the weight is not within 0 to `MAX_WEIGHT`.
    """

    text: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_text("keyword", self.text)
        if not self.text.strip() or len(self.text) > MAX_KEYWORD_LENGTH:
            raise ConfigError(f"keyword {self.text!r:.120}: expected 1 to {MAX_KEYWORD_LENGTH} characters")
        if not 0 < self.weight <= MAX_WEIGHT:
            raise ConfigError(f"keyword {self.text!r}: weight={self.weight:g} must be above 0 and up to {MAX_WEIGHT:g}")

    @classmethod
    def parse(cls, text: str) -> Keyword:
        """Return the keyword of `text`: a phrase, or a phrase, a colon and its weight, such as `Poirot:2`.

        Raises `ConfigError` as the constructor does.
        """
        phrase, _, end = text.strip().rpartition(":")
        try:
            weight = float(end) if phrase else math.nan
        except ValueError:  # a colon within the phrase
            weight = math.nan
        return cls(text.strip()) if math.isnan(weight) else cls(phrase.strip(), weight)


@dataclass(frozen=True)
class Hints:
    """What is known about the speech of one session, and how much to search. Without hints, nothing changes.

    Args:
        keywords: Words and phrases that are likely to occur, as strings or `Keyword`.
        prompt: Text before the speech: it sets spelling, style, names and language.
        languages: Languages that may be spoken, as ISO 639-1 codes, or `auto` for all that can be identified. Words
            and turns are tagged with the language. A `Transcriber` whose model can be set to one of several languages
            (`en` and `fr` for `tiny`) refuses others.
        delay: Text delay in seconds, for models that are trained with several; None is the model's own.
        beam: Hypotheses of the text that are kept, each in a slot of the model. 1 is greedy decoding. None is the beam
            of the model for recordings (see `Transcriber.transcribe`) and 1 for streams.
        lm: Text of the same kind as the speech, such as notes: words that follow each other in it are likelier. It
            needs a beam of at least 2, and has one of 2 where none is given.
        alternatives: Texts for each doubtful word, including the best. The search keeps at least as many hypotheses.

    Raises:
        ConfigError: A value is out of its range.

    Example:
        >>> hints = Hints(keywords=["Ngaio Marsh", Keyword("Poirot", 2.0)], languages=["en"])
        >>> transcript = transcriber.transcribe("novel.mp3", hints=hints)
    """

    keywords: Iterable[Keyword | str] = ()
    prompt: str = ""
    languages: Iterable[str] = ()
    delay: float | None = None
    beam: int | None = None
    lm: str = field(default="", repr=False)
    alternatives: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.keywords, str) or isinstance(self.languages, str):
            raise ConfigError("keywords and languages are lists of strings")
        object.__setattr__(self, "keywords", tuple(self.keywords))
        object.__setattr__(self, "languages", tuple(self.languages))
        for name in ("prompt", "lm"):
            _check_text(name, getattr(self, name))
        for language in self.languages:
            if language != AUTO and not (isinstance(language, str) and LANGUAGE.fullmatch(language)):
                raise ConfigError(f"language {language!r:.40}: expected an ISO 639-1 code such as 'en', or 'auto'")
        if len(self.phrases) > MAX_KEYWORDS:
            raise ConfigError(f"{len(self.phrases)} keywords: at most {MAX_KEYWORDS} are possible")
        if len(self.prompt) > MAX_PROMPT_LENGTH:
            raise ConfigError(f"the prompt has {len(self.prompt)} characters: at most {MAX_PROMPT_LENGTH} are possible")
        for name in ("beam", "alternatives"):
            number = getattr(self, name)
            if number is None and name == "beam":
                continue
            if not isinstance(number, int) or not 1 <= number <= MAX_BEAM:
                raise ConfigError(f"{name}={number!r} must be a whole number from 1 to {MAX_BEAM}")
        if self.lm and self.beam == 1:
            raise ConfigError("lm needs a beam of at least 2: with one hypothesis there is nothing to choose from")
        if self.delay is not None and not 0 < self.delay <= 10:
            raise ConfigError(f"delay={self.delay:g} must be above 0 and up to 10 seconds")

    @property
    def phrases(self) -> tuple[Keyword, ...]:
        """All keywords as `Keyword`."""
        return tuple(word if isinstance(word, Keyword) else Keyword(word) for word in self.keywords)

    def query(self) -> list[tuple[str, str]]:
        """Return the parameters of a server's address: everything but the beam and the text of its model."""
        query = [("keyword", f"{word.text}:{word.weight:g}") for word in self.phrases]
        query += [("language", language) for language in self.languages]
        if self.prompt:
            query.append(("prompt", self.prompt))
        if self.delay is not None:
            query.append(("delay", f"{self.delay:g}"))
        if self.alternatives > 1:
            query.append(("alternatives", str(self.alternatives)))
        return query

    def with_at_most(self, alternatives: int) -> Hints:
        """Return the hints, with `alternatives` as the maximum number of texts that they may request."""
        return self if self.alternatives <= alternatives else replace(self, alternatives=max(1, alternatives))

    def with_beam(self, beam: int) -> Hints:
        """Return the hints with the beam of a model, where they have none.

        Args:
            beam: Hypotheses that the model keeps by default.
        """
        return self if self.beam is not None else replace(self, beam=max(beam, self.width))

    @property
    def width(self) -> int:
        """Number of hypotheses that the search keeps, each in its own slot."""
        return max(self.beam or (2 if self.lm else 1), self.alternatives)

    @property
    def steers(self) -> bool:
        """Whether the model's steps must return candidates."""
        return bool(tuple(self.keywords)) or self.width > 1


def _check_text(name: str, text: object) -> None:
    """Raise `ConfigError` for what is no text, such as an argument of the command line that is not UTF-8."""
    if not isinstance(text, str):
        raise ConfigError(f"{name} must be text, not {text!r:.40}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = f"character {error.start + 1}, {text[error.start]!a}"
        raise ConfigError(f"{name}: {place}, is half of a surrogate pair: give valid Unicode text") from error
