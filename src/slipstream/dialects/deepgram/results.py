"""Deepgram's JSON for words: the same in live and in pre-recorded transcripts."""

from __future__ import annotations

import string
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slipstream import __version__
from slipstream.dialects.texts import dump, word_fields
from slipstream.events import Word
from slipstream.transcript import languages_of, likely_texts

if TYPE_CHECKING:
    from slipstream.dialects.deepgram.channel import Found

ARCH = "delayed-streams"
_PUNCTUATION = string.punctuation + "\u2026\u00ab\u00bb\u201c\u201d\u2018\u2019\u00bf\u00a1\u2014\u2013"


class Results:
    """Writes `Results`.

    Args:
        model: Name of the model.
        id: UUID of the request.
        punctuate: Whether the transcript keeps punctuation and capitals.
        most: Alternatives at most.
    """

    def __init__(self, model: str, id: str, punctuate: bool, most: int = 1) -> None:
        self._punctuate, self._most = punctuate, most
        self._metadata = {"request_id": id, "model_info": model_info(model), "model_uuid": model_uuid(model)}

    def message(self, found: Found, channel: int, channels: int) -> str:
        """Return the message for a range."""
        return dump(
            type="Results",
            channel_index=[channel, channels],
            duration=round(found.end - found.start, 3),
            start=round(found.start, 3),
            is_final=found.is_final,
            speech_final=found.speech_final,
            channel={"alternatives": alternatives(found.words, self._punctuate, self._most)},
            metadata=self._metadata,
            from_finalize=found.from_finalize,
        )


def alternatives(words: Sequence[Word], punctuate: bool, most: int) -> list[dict[str, Any]]:
    """Return the most likely transcripts of words, each once."""
    found: dict[str, dict[str, Any]] = {}
    for text in likely_texts(words, most):
        written = alternative(text, punctuate)
        found.setdefault(written["transcript"], written)
    return list(found.values())


def alternative(words: Sequence[Word], punctuate: bool) -> dict[str, Any]:
    """Return the transcript of words, with times and confidence."""
    written = [{**word_fields(word), "word": bare(word.text)} for word in words]
    if punctuate:
        for fields, word in zip(written, words, strict=True):
            fields["punctuated_word"] = word.text
    texts = [word.text for word in words] if punctuate else [str(fields["word"]) for fields in written]
    languages = languages_of(words)
    found = {"languages": languages} if languages else {}
    return {"transcript": " ".join(texts), "confidence": mean_confidence(words), **found, "words": written}


def bare(text: str) -> str:
    """Return a word without capitals and without punctuation around it; punctuation alone stays."""
    return text.strip(_PUNCTUATION).lower() or text


def mean_confidence(words: Sequence[Word]) -> float:
    """Return the mean confidence of words; 0 without words, as in the reference."""
    return round(sum(word.confidence for word in words) / len(words), 4) if words else 0.0


def model_info(model: str) -> dict[str, str]:
    """Return the description of a model."""
    return {"name": model, "version": __version__, "arch": ARCH}


def model_uuid(model: str) -> str:
    """Return the UUID that represents a model's name."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, model))
