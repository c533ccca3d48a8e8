"""Sentences to train tokenizers on, to synthesise, or to keep out of training."""

from __future__ import annotations

import gzip
import re
import unicodedata
import zlib
from collections.abc import Iterable
from pathlib import Path

from slipstream.data.manifest import read_manifest
from slipstream.data.tokenizer import plain_text
from slipstream.errors import SlipstreamError

PASSAGE = 8
"""Words in a row that two texts share only if one was taken from the other."""
_ENDS = '.!?…:;"»)'
_QUOTES = str.maketrans({"’": "'", "‘": "'", "`": "'", **dict.fromkeys('"«»“”*_', " ")})  # noqa: RUF001


def read_texts(path: Path) -> list[str]:
    """Read the lines of a text file, plain or gzipped, by `without_quotes`: synthesisers read quotes aloud.

    Raises `SlipstreamError` for a file that cannot be read, is not UTF-8 or has no text.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise SlipstreamError(f"{path}, line {number}: not UTF-8; save the text in that encoding") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SlipstreamError(f"{path}: not a complete gzip file: {error}") from error
    except OSError as error:
        raise SlipstreamError(f"{path}: cannot be read: {error.strerror}") from error
    texts = [line for line in map(without_quotes, text.splitlines()) if line]
    if not texts:
        raise SlipstreamError(f"{path}: has no sentences; expected one per line")
    return texts


def without_quotes(text: str) -> str:
    """Return a text with composed letters (NFC) and plain apostrophes, without quotation marks and repeated spaces.

    Underscores and asterisks go too: they mark emphasis.

    Example:
        >>> without_quotes("L’ami dit : «\u00a0Non\u00a0»")
        "L'ami dit : Non"
    """
    return " ".join(unicodedata.normalize("NFC", text).translate(_QUOTES).split())


class Exclusion:
    """Plain texts to keep out of training: `text in exclusion` if it is one of them, or shares a passage with one.

    A passage is `PASSAGE` words in a row: a sentence that is quoted in a longer text, or cut, is recognised too.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = {plain for plain in texts if plain}
        self._passages = {passage for text in self._texts for passage in _passages(text)}

    def __contains__(self, text: str) -> bool:
        return text in self._texts or not self._passages.isdisjoint(_passages(text))

    def __len__(self) -> int:
        return len(self._texts)


def excluded(*manifests: Path) -> Exclusion:
    """Read the sentences of manifests of test recordings, to keep them out of training."""
    return Exclusion(plain_text(recording.text) for path in manifests for recording in read_manifest(path))


def _passages(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[start : start + PASSAGE]) for start in range(len(words) - PASSAGE + 1)}


def as_sentence(text: str) -> str:
    """Return English text without lower case, or without a mark at its end, as a sentence.

    Example:
        >>> as_sentence("AND THEN I'LL GO")
        "And then I'll go."
    """
    if not text or (text[-1] in _ENDS and not text.isupper()):
        return text
    if text.isupper():
        text = " ".join(word.capitalize() if re.match(r"I\b", word) else word.lower() for word in text.split())
    return text[0].upper() + text[1:] + ("" if text[-1] in _ENDS else ".")
