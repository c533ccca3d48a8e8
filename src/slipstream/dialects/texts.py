"""Messages in JSON, and audio in base64 in them, for dialects that have both."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic_core import from_json

from slipstream.dialects.protocol import ProtocolError
from slipstream.events import Word

try:
    import pybase64

    _fast_b64decode: Callable[..., bytes] = pybase64.b64decode
except ImportError:  # installed without the extra `server`
    _fast_b64decode = base64.b64decode

PARSED_CHARACTERS = 1 << 16
"""Most characters of a message in JSON in addition to its audio."""
_PIECE_CHARACTERS = 8192
"""A multiple of 4, so that a piece is whole bytes."""
_CUT = "\\u0000"


to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Return a value as JSON."""


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text, which is UTF-8, UTF-16 or UTF-32 if it is bytes.

    Raises `RecursionError`, and `ValueError`, also for half of a surrogate pair, which cannot be sent to anyone.
    """
    try:
        return from_json(text)
    except (ValueError, TypeError):
        pass
    # The fast parser also refuses other encodings than UTF-8, more than 200 levels of nesting, and strings of Python's
    # that are no UTF-8 (`TypeError`).
    value = json.loads(text)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a string has half of a surrogate pair, which is no character") from error
    return value


def parse_object(text: str, long: str = "audio") -> dict[str, Any]:
    """Return the JSON object of a message. What is long in it is cut out before the rest is parsed.

    Parsing makes an object of each value, and blocks all other streams meanwhile: 4 MiB of empty lists take 1.5 s.

    Args:
        text: The message.
        long: The key of a string that may be long, such as audio in base64; in the message or in an object in it.

    Raises:
        ProtocolError: The text is no JSON object, or too long without that string.
    """
    cut = None
    if len(text) > PARSED_CHARACTERS and (found := re.search(rf'"{long}"\s*:\s*"', text)):
        start, end = found.end(), text.find('"', found.end())
        if end >= 0 and text.find("\\", start, end) < 0:
            cut, text = text[start:end], f"{text[:start]}{_CUT}{text[end:]}"
    if len(text) > PARSED_CHARACTERS:
        raise ProtocolError(
            f"a message has at most {PARSED_CHARACTERS} characters in addition to its {long}, which has no escapes"
        )
    try:
        message = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a JSON message: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"expected a JSON object, got {type(message).__name__}")
    if cut is not None:
        for fields in (message, *message.values()):
            if isinstance(fields, dict) and fields.get(long) == "\0":
                fields[long] = cut
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


def b64decode(text: str) -> bytes:
    """Return the bytes of base64. Raises `ValueError` as `base64.b64decode` with `validate` does."""
    try:
        return _fast_b64decode(text, validate=True)
    except ValueError:  # the standard library accepts surplus padding, and names the error
        return base64.b64decode(text, validate=True)


def decode_base64(text: Any, name: str) -> Iterator[bytes]:
    """Yield bytes in pieces. Raises `ProtocolError` that names the field for what is not base64."""
    if not isinstance(text, str) or not text.isascii():
        raise ProtocolError(f"{name}: expected base64")
    for start in range(0, len(text), _PIECE_CHARACTERS):
        try:
            yield b64decode(text[start : start + _PIECE_CHARACTERS])
        except ValueError as error:
            raise ProtocolError(f"{name}: not base64: {error}") from error
