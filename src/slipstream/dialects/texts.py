"""Messages in JSON, and audio in base64 in them, for dialects that have both."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

from slipstream.dialects.protocol import ProtocolError
from slipstream.events import Word

_PIECE_CHARACTERS = 8192
"""A multiple of 4, so that a piece is whole bytes."""


to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Return a value as JSON."""


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises `RecursionError`, and `ValueError`, also for half of a surrogate pair, which cannot be sent to anyone.
    """
    value = json.loads(text)
    searched = text if isinstance(text, str) else text.decode("latin-1")
    # A half is an escape, or begins with this byte in UTF-8. One character is found faster than several.
    if "\\" in searched or "\xed" in searched:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("a string has half of a surrogate pair, which is no character") from error
    return value


def parse_object(text: str) -> dict[str, Any]:
    """Return the JSON object of a message. Raises `ProtocolError`."""
    try:
        message = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a JSON message: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"expected a JSON object, got {type(message).__name__}")
    return message


def dump(**fields: Any) -> str:
    """Return a message with these fields."""
    return to_json(fields)


def word_fields(word: Word) -> dict[str, Any]:
    """Return a word with its times, confidence and language, as several services write it."""
    return {
        "word": word.text,
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "confidence": round(word.confidence, 4),
        **({} if word.language is None else {"language": word.language}),
    }


def decode_base64(text: Any, name: str) -> Iterator[bytes]:
    """Yield bytes in pieces. Raises `ProtocolError` that names the field for what is not base64."""
    if not isinstance(text, str) or not text.isascii():
        raise ProtocolError(f"{name}: expected base64")
    for start in range(0, len(text), _PIECE_CHARACTERS):
        try:
            yield base64.b64decode(text[start : start + _PIECE_CHARACTERS], validate=True)
        except ValueError as error:
            raise ProtocolError(f"{name}: not base64: {error}") from error
