"""Sentences to train tokenizers on, to synthesise, or to keep out of training."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from slipstream.data.manifest import read_manifest
from slipstream.data.tokenizer import plain_text
from slipstream.errors import SlipstreamError

_QUOTES = str.maketrans({"’": "'", "‘": "'", "`": "'", **dict.fromkeys('"«»“”*_', " ")})  # noqa: RUF001


def read_texts(path: Path) -> list[str]:
    """Read the lines of a text file, plain or gzipped, without typographic quotes, which synthesisers read aloud.

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
    lines = (" ".join(line.translate(_QUOTES).split()) for line in text.splitlines())
    texts = [line for line in lines if line]
    if not texts:
        raise SlipstreamError(f"{path}: has no sentences; expected one per line")
    return texts


def excluded(manifest: Path) -> set[str]:
    """Read the sentences of a manifest as plain text, to keep them out of training."""
    return {plain for recording in read_manifest(manifest) if (plain := plain_text(recording.text))}
