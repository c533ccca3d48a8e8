"""`slipstream say`: a text into a WAV file."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.cli.conftest import Outcome
from tests.speaking import save_model

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def test_writes_audio_and_prints_words(cli: Cli, folder: Path, tmp_path: Path) -> None:
    options = ["-m", folder, "--voices", folder, "--device", "cpu", "-o", tmp_path / "out.wav"]
    outcome = cli("say", "the fox", "--voice", "ann", "--voice", "bob", "--words", *options)
    assert outcome.code == 0, outcome.err
    words = [json.loads(line) for line in outcome.out.splitlines()]
    assert [word["text"] for word in words] == ["the", "fox"]
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert file.getnframes() >= words[-1]["end"] * 24_000


def test_text_and_voices_that_are_not_there(cli: Cli, folder: Path, tmp_path: Path) -> None:
    options = ["-m", folder, "--voices", folder, "--device", "cpu", "-o", tmp_path / "out.wav"]
    assert "there is no text" in cli("say", "  ", *options).err
    outcome = cli("say", "fox", "--voice", "carl", *options)
    assert outcome.code == 1
    assert "carl.5117e570@1.safetensors: no such file" in outcome.err
    assert not (tmp_path / "out.wav").exists()
