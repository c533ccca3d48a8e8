"""`slipstream data`: what becomes of a manifest's lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from slipstream.cli.data import app
from slipstream.train.prepare import write_wave

SAMPLE = Path(__file__).parents[2] / "examples" / "sample.opus"


def _manifest(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def _read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def transcribed(tmp_path: Path) -> tuple[str, list[dict[str, object]]]:
    """What the command says and writes of a recording with a text, one without, silence, and no audio."""
    write_wave(tmp_path / "silence.wav", np.zeros(24_000, np.float32))
    (tmp_path / "bad.wav").write_text("no audio")
    manifest = _manifest(
        tmp_path / "all.jsonl",
        {"audio": str(SAMPLE), "text": "told"},
        {"audio": str(SAMPLE), "text": "", "dataset": "own"},
        {"audio": "silence.wav", "text": ""},
        {"audio": "bad.wav", "text": ""},
    )
    out = tmp_path / "out.jsonl"
    result = CliRunner().invoke(app, ["transcribe", str(manifest), "-m", "tiny", "-o", str(out), "--streams", "2"])
    assert result.exit_code == 0, result.output
    return result.output, _read(out)


def test_what_has_no_text_gets_what_the_model_hears(transcribed: tuple[str, list[dict[str, object]]]) -> None:
    output, (told, heard) = transcribed
    assert told == {"audio": str(SAMPLE), "text": "told", "lang": "en"}
    assert heard["dataset"] == "own"
    words = heard["words"]
    assert isinstance(words, list)
    assert heard["text"] == " ".join(word[0] for word in words)
    assert len(words) > 20
    assert "1 recordings transcribed; left out: 1 in which nothing is heard, 1 that cannot be read" in output
    assert "bad.wav" in output


def test_cutting_goes_by_a_manifests_words(tmp_path: Path) -> None:
    words = [["one", 0.5, 1.0], ["two", 3.0, 3.5], ["three", 4.0, 4.5]]
    write_wave(tmp_path / "long.wav", np.zeros(5 * 24_000, np.float32))
    manifest = _manifest(tmp_path / "all.jsonl", {"audio": "long.wav", "text": "one two three", "words": words})
    result = CliRunner().invoke(app, ["cut", str(manifest), "-o", str(tmp_path / "cut"), "--seconds", "4"])
    assert result.exit_code == 0, result.output
    pieces = _read(tmp_path / "cut" / "manifest.jsonl")
    assert [(piece["text"], piece["seconds"]) for piece in pieces] == [("one", 2.0), ("two three", 3.0)]
    assert pieces[1]["words"] == [["two", 1.0, 1.5], ["three", 2.0, 2.5]]
