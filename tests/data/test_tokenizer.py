"""Errors of training a vocabulary are explained in terms of the text and the size."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.data.tokenizer import extend_tokenizer, lost_letters, plain_text, train_tokenizer, writes_plain
from slipstream.errors import SlipstreamError
from slipstream.model.text import Tokenizer

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


@pytest.mark.parametrize(
    ("text", "language", "plain"),
    [
        ("IRMAK \u0130ZM\u0130R", "tr", "\u0131rmak izmir"),
        ("IRMAK", "en", "irmak"),
        ("\u0645\u06cc\u200c\u0634\u0648\u062f.", "fa", "\u0645\u06cc\u200c\u0634\u0648\u062f"),
    ],
    ids=["turkish", "english", "persian"],
)
def test_plain_text_of_a_language(text: str, language: str, plain: str) -> None:
    assert plain_text(text, language) == plain


@pytest.mark.parametrize(
    ("lines", "plain"),
    [
        (["it's a well-known fact", "où êtes-vous"], True),
        (["It's a well-known fact"], False),
        (["a fact, or not"], False),
        (["room 12"], False),
    ],
)
def test_whether_a_vocabulary_writes_plain_text(lines: list[str], plain: bool, tmp_path: Path) -> None:
    train_tokenizer(lines * 30, tmp_path / "a.model", 100, hard_limit=False)
    assert writes_plain(Tokenizer(tmp_path / "a.model")) is plain


def test_letters_that_a_vocabulary_cannot_write_are_counted(tmp_path: Path) -> None:
    train_tokenizer(["the dog runs home"] * 30, tmp_path / "a.model", 100, hard_limit=False)
    lost = lost_letters(["The D\u00f6g", "dog!"], Tokenizer(tmp_path / "a.model"), plain=True)
    assert (dict(lost.missing), lost.total, lost.named) == ({"\u00f6": 1}, 9, "\u00f6")


def test_an_extension_has_pieces_that_its_texts_use(tmp_path: Path) -> None:
    train_tokenizer(TEXT, tmp_path / "old.model", 60, hard_limit=False)
    old = Tokenizer(tmp_path / "old.model")
    german = ["der hund l\u00e4uft", "eine katze sa\u00df auf der matte", "der hund ist s\u00fc\u00df"] * 20
    extend_tokenizer(tmp_path / "old.model", german, tmp_path / "new.model", old.vocab_size + 11)
    new = Tokenizer(tmp_path / "new.model")
    used = {token for line in german for token in new.encode(line)}
    added = range(old.vocab_size, new.vocab_size)
    letters = [new.decode([token]) for token in added if len(new.decode([token])) == 1]
    assert set(letters) >= set("\u00e4\u00fc\u00df")
    assert used >= set(added[len(letters) :])
    assert all(new.encode(line) == old.encode(line) for line in TEXT)
