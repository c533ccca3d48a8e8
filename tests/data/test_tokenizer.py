"""Errors of training a vocabulary are explained in terms of the text and the size."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.data.tokenizer import extend_tokenizer, plain_text, train_tokenizer
from slipstream.errors import SlipstreamError

TEXT = ["the dog runs home", "a cat sat on the mat"] * 30


@pytest.mark.parametrize(
    ("sentences", "size", "message"),
    [
        ([], 50, "no sentence has a word"),
        (["", " "], 50, "no sentence has a word"),
        (TEXT, 2000, r"too small for a vocabulary of 2000: it has pieces for \d+ at most"),
        (TEXT, 5, "a vocabulary of 5 is too small: the characters of the text alone need 18"),
        (TEXT, 3, "its first 4 ids are reserved"),
    ],
)
def test_a_size_and_a_text_that_do_not_suit_each_other(
    sentences: list[str], size: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SlipstreamError, match=message) as raised:
        train_tokenizer(sentences, tmp_path / "a.model", size)
    assert "INTERNAL" not in str(raised.value)
    assert not (tmp_path / "a.model").exists()


@pytest.mark.parametrize("size", [18, 20])
def test_the_bounds_that_are_named_are_good(size: int, tmp_path: Path) -> None:
    train_tokenizer(TEXT, tmp_path / "a.model", size)
    assert (tmp_path / "a.model").stat().st_size


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), (b"", "is not"), (b"text", "is not")])
def test_a_vocabulary_to_extend_that_cannot_be_read_is_named(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "old.model").write_bytes(content)
    with pytest.raises(SlipstreamError, match=rf"old\.model: {message}"):
        extend_tokenizer(tmp_path / "old.model", TEXT, tmp_path / "new.model", 30)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Don\u2019t stop — it's a well-known fact, 'tis 42!", "don't stop it's a well-known fact tis"),
        ("« L'œuvre, où êtes-vous ? » Noël, ÇA", "l'œuvre où êtes-vous noël ça"),
        ("Straße größer!", "straße größer"),
        ("¿Dónde está el niño?", "dónde está el niño"),
        ("Cafe\u0301", "café"),
        ("Ещё Москва, 1990.", "ещё москва"),
        ("नमस्ते, हिन्दी।", "नमस्ते हिन्दी"),
        ("12 — …", ""),
    ],
)
def test_plain_text_keeps_the_letters_and_marks_of_every_language(text: str, plain: str) -> None:
    assert plain_text(text) == plain
