"""`slipstream say`: a text into a WAV file."""

from __future__ import annotations

import json
import os
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


@pytest.mark.parametrize(
    ("text", "output", "message"),
    [
        ("( : )", "out.wav", "there is no text"),
        ("a \udcff", "out.wav", "the text is not UTF-8"),
        ("fox", "out.mp3", "would be a WAV file"),
        ("fox", ".", "is a folder"),
        ("fox", "-", "not to standard output"),
    ],
)
def test_wrong_usage_is_found_before_the_model_is_loaded(
    cli: Cli, text: str, output: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = cli("say", text, "-m", tmp_path / "missing", "-o", output)
    assert outcome.code == 2
    assert message in " ".join(outcome.err.replace("\u2502", " ").split())
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_stays_as_it_was(
    cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.wav"
    output.write_bytes(b"earlier")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    outcome = cli("say", "fox", "-m", folder, "--device", "cpu", "-o", output)
    assert (outcome.code, "out.wav: cannot be written: No space left" in outcome.err) == (1, True)
    assert output.read_bytes() == b"earlier"


def test_a_pipe_is_written_to(cli: Cli, folder: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_bytes)
        assert cli("say", "fox", "-m", folder, "--device", "cpu", "-o", pipe).code == 0
        assert read.result(10)[:4] == b"RIFF"
    assert pipe.is_fifo()


def test_missing_texts_and_voices_are_errors(cli: Cli, folder: Path, tmp_path: Path) -> None:
    options = ["-m", folder, "--voices", folder, "--device", "cpu", "-o", tmp_path / "out.wav"]
    assert "there is no text" in cli("say", "  ", *options).err
    outcome = cli("say", "fox", "--voice", "carl", *options)
    assert outcome.code == 1
    assert "carl.5117e570@1.safetensors: no such file" in outcome.err
    assert not (tmp_path / "out.wav").exists()
