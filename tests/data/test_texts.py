"""Texts: files that cannot be read, sentences, quotes, and exclusion."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from slipstream.data.texts import Exclusion, as_sentence, read_texts, without_quotes
from slipstream.errors import SlipstreamError


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, r"a\.txt: cannot be read"),
        ("a.txt", b" \n\n", r"a\.txt: has no sentences"),
        ("a.txt", "one\n\u00e9t\u00e9".encode("latin-1"), r"a\.txt, line 2: not UTF-8"),
        ("a.gz", b"plain", r"a\.gz: not a complete gzip file"),
        ("a.gz", gzip.compress(b"one two three", mtime=0)[:-9], r"a\.gz: not a complete gzip file"),
    ],
)
def test_a_text_file_that_cannot_be_read_is_reported(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SlipstreamError, match=message):
        read_texts(tmp_path / name)


def test_a_sentence_a_quotation_of_it_and_a_part_of_it_are_excluded() -> None:
    sentence = "it was the best of times it was the worst of times"
    exclusion = Exclusion([sentence, "hello there"])
    assert sentence in exclusion
    assert f"he wrote {sentence} and more" in exclusion
    assert "the best of times it was the worst" in exclusion
    assert "hello there" in exclusion
    assert "hello there again" not in exclusion
    assert "it was the best of days it was the worst of days" not in exclusion
    assert len(exclusion) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("AND THEN I'LL GO", "And then I'll go."),
        ("no end", "No end."),
        ("NOW!", "Now!"),
        ("It has both.", "It has both."),
        ("", ""),
    ],
)
def test_a_text_becomes_a_sentence(text: str, sentence: str) -> None:
    assert as_sentence(text) == sentence


def test_quotes_and_emphasis_go_and_letters_are_composed() -> None:
    assert without_quotes("\u201cL\u2019e\u0301te\u0301\u201d \u00ab\u00a0_ici_\u00a0\u00bb") == "L'\u00e9t\u00e9 ici"
