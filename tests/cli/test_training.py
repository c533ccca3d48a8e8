"""`slipstream train tokenizer`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Outcome

from slipstream.model.text import Tokenizer

VOCABULARY = {letter: number for number, letter in enumerate(["Ġ", *"abcHe"])}
SPECIAL = {"content": "<|endoftext|>", "id": 6}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts.txt").write_text("He\nabc He\n")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": VOCABULARY}, "added_tokens": [SPECIAL]}))
    return tmp_path


def test_pieces_of_whisper_keep_capitals(texts: Path, cli: Callable[..., Outcome]) -> None:
    vocabulary, out = texts / "tokenizer.json", texts / "out.model"
    cli("train", "tokenizer", texts / "texts.txt", "--whisper", vocabulary, "--size", "10", "--out", out)
    tokenizer = Tokenizer(out)
    assert tokenizer.vocab_size == 10
    assert tokenizer.decode(tokenizer.encode("He abc")) == "He abc"


def test_two_origins_exclude_each_other(texts: Path, cli: Callable[..., Outcome]) -> None:
    vocabulary, out = texts / "tokenizer.json", texts / "out.model"
    outcome = cli("train", "tokenizer", texts / "texts.txt", "--whisper", vocabulary, "--extend", "tiny", "--out", out)
    assert outcome.code == 1
    assert "--extend and --whisper exclude each other" in outcome.err
