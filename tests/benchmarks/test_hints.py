"""The benchmark of hints, on a small random model."""

from __future__ import annotations

import json
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.models import noise_and_tones, random_model, stt_config

from benchmarks import hints
from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.testing import tiny_tokenizer
from slipstream.transcriber import Transcriber

pytest.importorskip("jiwer")
pytest.importorskip("whisper_normalizer")


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    config = stt_config(text_vocab=tokenizer.vocab_size)
    lm, codec = random_model(config)

    def load(_: str, slots: int, beam: int) -> Transcriber:
        return Transcriber(OnnxRunner(config, lm, codec, slots=slots, threads=1), tokenizer, model="random", beam=beam)

    monkeypatch.setattr("slipstream.load", load)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    for seed, row in enumerate(rows):
        with wave.open(str(path.parent / row["audio"]), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(24_000)
            out.writeframes((noise_and_tones(1.0, seed=seed) * 32_767).astype("<i2").tobytes())
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["hints.py", *arguments])
    hints.main()
    return capsys.readouterr().out.splitlines()


def test_hints_are_compared_with_the_first_beam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, notes = tmp_path / "m.jsonl", tmp_path / "notes.txt"
    row = {"split": "dev", "lang": "en", "dataset": "a"}
    write_rows(manifest, [{"audio": f"{i}.wav", "text": f"the word {i}", **row} for i in range(2)])
    notes.write_text("the word 1\nspeech after speech\n")
    lines = run(
        monkeypatch, capsys, "compare", str(manifest), "--beam", "1", "2", "--lm", str(notes),
        "--prompt", "the word", "--language", "fr", "--min-confidence", "0",
    )  # fmt: skip
    names = ["beam 1", "beam 2", "beam 2 with the text", "prompt 'the word'", "language fr"]
    assert [line.partition(":")[0] for line in lines] == names
    assert all("on 2 recordings" in line and "after their end" in line for line in lines)
    assert ["change" in line for line in lines] == [False, True, True, True, True]
    assert "change +0.0 (+0.0 to +0.0)" in lines[4]  # a language only tags words


def test_lines_that_are_spoken_in_a_recording_are_left_out_of_the_text(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("The word, one!\nanother line\n")
    recording = hints.Recording(Path("a.wav"), "the word one")
    assert hints._without(notes, [recording], "en") == "another line"


def test_a_short_list_is_judged_on_the_sentences_of_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"audio": f"{name}.wav", "text": f"to {name}", "name": name} for name in ("Ngaio", "Poirot")]
    write_rows(tmp_path / "names.jsonl", rows)
    lines = run(
        monkeypatch, capsys, "names", str(tmp_path), "--list", "1", "2", "--prompt", "A letter from {name}."
    )  # fmt: skip
    assert [line.split(":")[0] for line in lines] == [
        "beam 1, no keywords",
        "beam 1, prompt 'A letter from {name}.'",
        "beam 1, 1 keywords of weight 1",
        "  the same sentences without",
        "beam 1, 2 keywords of weight 1",
    ]
    assert [int(line.split(" % of ")[1].split(",")[0]) for line in lines] == [2, 2, 1, 1, 2]


def test_errors_are_counted_in_words_and_letters() -> None:
    assert hints._errors("the cat sat", "the hat", "en") == (2, 3, 1, 5, 11)
    low, high = hints._interval(np.array([[1, 2], [1, 2]]))
    assert low == high == 0.5
