"""A SentencePiece model of Whisper's pieces, from a tiny vocabulary that is made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slipstream.data.whisper_vocabulary import read_whisper_vocabulary, spelled, whisper_tokenizer
from slipstream.errors import SlipstreamError
from slipstream.model.config import PAD_ID
from slipstream.model.text import Tokenizer

LETTERS = ["a", "b", "c", "n", "t", " "]
MERGED = [" t", "an", "ab", " a", "ban", "ana", " b", " ban"]
"""In the order of merging."""
LEFT_OUT = [b"\xc3", b"\n", b" \n", b"a b", b"\xe2\x96\x81", b"", b"\x07"]
"""Half a character, control characters, white space inside, SentencePiece's mark of a space, nothing."""


def vocabulary(merged: list[str] = MERGED) -> dict[str, int]:
    pieces = [*(text.encode() for text in LETTERS), *LEFT_OUT, "é".encode(), *(text.encode() for text in merged)]
    special = ["<|endoftext|>", "<|en|>"]
    return {token: i for i, token in enumerate([*map(spelled, pieces), *special])}


def make(path: Path, sentences: list[str], size: int, merged: list[str] = MERGED) -> tuple[Tokenizer, set[str]]:
    """The tokenizer, and its pieces of text with `_` for a space."""
    whisper_tokenizer(vocabulary(merged), sentences, path / "made" / "spm.model", size)
    tokenizer = Tokenizer(path / "made" / "spm.model")
    return tokenizer, set(pieces(tokenizer, range(PAD_ID + 1, tokenizer.vocab_size)))


def pieces(tokenizer: Tokenizer, tokens) -> list[str]:
    return ["_".join(part.decode() for part in tokenizer.segments(token)) for token in tokens]


def cut(tokenizer: Tokenizer, text: str) -> list[str]:
    return pieces(tokenizer, tokenizer.encode(text))


def test_a_low_id_is_merged_first(tmp_path: Path) -> None:
    sentences = ["banana tab a é c"]
    tokenizer, _ = make(tmp_path, sentences, 19)
    assert cut(tokenizer, "banana") == ["_ban", "ana"]
    assert cut(tokenizer, "tab") == ["_t", "ab"]
    tokenizer, _ = make(tmp_path, sentences, 19, [" b", "na", "an", "ana", "ab", " t", " a"])
    assert cut(tokenizer, "banana") == ["_b", "ana", "na"]


def test_the_pieces_that_the_text_uses_most_are_taken_with_those_that_they_are_merged_from(tmp_path: Path) -> None:
    sentences = ["banana"] * 5 + ["tab"]
    tokenizer, found = make(tmp_path, sentences, 4 + 5 + 5)
    assert tokenizer.vocab_size == 14
    assert {"_ban", "ana", "ban", "an"} < found
    assert cut(tokenizer, "banana") == ["_ban", "ana"]


def test_where_a_piece_is_left_out_smaller_ones_are_used(tmp_path: Path) -> None:
    tokenizer, found = make(tmp_path, ["banana c"] * 3 + ["tab"], 4 + 6 + 4)
    assert found == {"_", "a", "b", "c", "n", "t", "an", "ban", "_ban", "ana"}
    assert cut(tokenizer, "tab banana") == ["_", "t", "a", "b", "_ban", "ana"]
    assert tokenizer.decode(tokenizer.encode("tab banana")) == "tab banana"


def test_only_whole_visible_characters_are_pieces(tmp_path: Path) -> None:
    tokenizer, found = make(tmp_path, ["banana tab a\né c a b"], 20)
    assert found <= {text.replace(" ", "_") for text in (*LETTERS, *MERGED, "é")}
    assert "é" in found
    assert cut(tokenizer, "é c") == ["_", "é", "_", "c"]
    assert PAD_ID not in tokenizer.encode("pad <pad> <|en|>")


def test_a_text_with_too_few_pieces_or_too_many_letters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlipstreamError, match=r"uses only \d+ of Whisper's pieces: give a smaller size or more text"):
        make(tmp_path, ["banana"], 40)
    with pytest.raises(SlipstreamError, match="the text has 6 letters: give a size of at least 10"):
        make(tmp_path, ["banana cat"], 9)
    assert not (tmp_path / "made").exists()


def test_every_byte_has_its_own_letter() -> None:
    assert spelled(b" a\n") == "ĠaĊ"
    letters = spelled(bytes(range(256)))
    assert len(set(letters)) == 256
    assert letters.isprintable()
    assert " " not in letters


def test_the_vocabulary_file_is_read_with_its_special_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    added = [{"content": "<|en|>", "id": 7, "special": True}]
    path.write_text(json.dumps({"model": {"vocab": {"a": 0, "Ġa": 5}}, "added_tokens": added}))
    assert read_whisper_vocabulary(path) == {"a": 0, "Ġa": 5, "<|en|>": 7}
    for wrong in ({}, {"model": {}}, {"model": {"vocab": {"a": 0}}, "added_tokens": [3]}, {"model": 3}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(SlipstreamError, match=r"expected Whisper's tokenizer\.json, with model\.vocab"):
            read_whisper_vocabulary(path)
