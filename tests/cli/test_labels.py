"""`slipstream data`: word times of other tools, teachers that agree, and Whisper."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from slipstream.cli.data import app
from slipstream.data.wave import write_wave
from slipstream.errors import SlipstreamError

CTM = "a 1 0.10 0.30 hello\na 1 0.50 0.30 world\nb 1 0.10 0.30 other\n"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    for name in "ab":
        write_wave(tmp_path / f"{name}.wav", np.full(24_000, 0.1, np.float32))
    return _written(tmp_path / "all.jsonl", ("a.wav", "Hello, world."), ("b.wav", "Quite another text."))


def _written(path: Path, *lines: tuple[str, str]) -> Path:
    text = "".join(json.dumps({"audio": audio, "text": text}) + "\n" for audio, text in lines)
    path.write_text(text, encoding="utf-8")
    return path


def _run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def _read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_word_times_are_imported_and_other_texts_left_out(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "all.ctm").write_text(CTM, encoding="utf-8")
    output = _run("import", manifest, "--words", tmp_path / "all.ctm", "--out", tmp_path / "out.jsonl")
    assert "1 recording imported, 1 left out" in output
    (line,) = _read(tmp_path / "out.jsonl")
    assert line["words"] == [["Hello,", 0.1, 0.4], ["world.", 0.5, 0.8]]


def test_files_next_to_the_audio_are_found_by_their_names(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "a.ctm").write_text(CTM, encoding="utf-8")
    output = _run("import", manifest, "--out", tmp_path / "out.jsonl")
    assert "has none of b.json, b.TextGrid, b.ctm" in output
    assert len(_read(tmp_path / "out.jsonl")) == 1


def test_a_missing_folder_is_named(manifest: Path, tmp_path: Path) -> None:
    arguments = ["import", str(manifest), "--words", str(tmp_path / "none"), "--out", str(tmp_path / "out.jsonl")]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, SlipstreamError)
    assert "there is no such file or folder" in str(error)


def test_texts_on_which_two_teachers_agree_are_kept(manifest: Path, tmp_path: Path) -> None:
    other = _written(tmp_path / "other.jsonl", ("a.wav", "hello world"), ("b.wav", "quite something else"))
    output = _run("agree", manifest, other, "--out", tmp_path / "out.jsonl")
    assert "1 recording kept; left out: 1 that differ, 0 in one manifest only" in output
    (line,) = _read(tmp_path / "out.jsonl")
    assert (line["text"], line["agreement"]) == ("Hello, world.", 1.0)


def test_whisper_is_a_teacher_and_an_aligner(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [SimpleNamespace(word=" Hello", start=0.1, end=0.4, probability=0.5)]
    module = ModuleType("faster_whisper")
    module.WhisperModel = lambda *_, **__: SimpleNamespace(  # type: ignore[attr-defined]
        transcribe=lambda *_, **__: ([SimpleNamespace(words=words)], None)
    )
    monkeypatch.setitem(sys.modules, "faster_whisper", module)
    untranscribed = _written(tmp_path / "none.jsonl", ("a.wav", ""), ("b.wav", "given"))
    out = tmp_path / "out.jsonl"
    assert "1 recording transcribed" in _run("transcribe", untranscribed, "--teacher", "whisper:base", "--out", out)
    given, written = _read(out)
    assert (given["text"], written["text"], written["confidence"]) == ("given", "Hello", 0.5)
    output = _run("transcribe", untranscribed, "--teacher", "whisper:base", "--least", 0.6, "--out", out)
    assert "1 with less confidence than 0.6" in output
    assert len(_read(out)) == 1
    one = _written(tmp_path / "one.jsonl", ("a.wav", "Hello!"))
    assert "1 recording aligned" in _run("align", one, "--aligner", "whisper:base", "--out", out)
    assert _read(out)[0]["words"] == [["Hello!", 0.1, 0.4]]
