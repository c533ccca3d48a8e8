"""`slipstream train tokenizer` and `slipstream train calibrate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.cli.conftest import Outcome
from tests.evaluate.test_endings import RATE, spoken

from slipstream.data.manifest import Recording
from slipstream.evaluate.transcribe import Hypothesis
from slipstream.events import Word
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


def test_only_the_configuration_of_a_folder_is_changed(tmp_path: Path, cli: Callable[..., Outcome]) -> None:
    outcome = cli("train", "calibrate", tmp_path / "words.jsonl", "--model", "tiny")
    assert outcome.code == 1
    assert "--model tiny: not a folder" in outcome.err
    assert "`slipstream convert tiny FOLDER`, or give --out FILE" in outcome.err


def test_confidence_and_turns_are_calibrated_together(
    tmp_path: Path, cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    for name in ("words", "turns"):
        line = json.dumps({"audio": f"{name}.wav", "text": "a"})
        (tmp_path / f"{name}.jsonl").write_text(line)

    def transcribe(_: object, recordings: list[Recording], **_options: object) -> tuple[list[Hypothesis], None]:
        (recording,) = recordings
        if recording.audio.name == "turns.wav":
            return [spoken(tmp_path, number) for number in range(40)], None
        said = ["a" if number % 4 else "b" for number in range(300)]  # a quarter of the words is wrong
        words = [Word(text, number, number + 0.5, 0.9 if text == "a" else 0.3) for number, text in enumerate(said)]
        return [Hypothesis(Recording(recording.audio, "a " * 300), 300.0, 300.0, words)], None

    monkeypatch.setattr("slipstream.evaluate.transcribe.transcribe_recordings", transcribe)
    transcriber = SimpleNamespace(frame_rate=12.5, sample_rate=RATE)
    loaded: list[dict[str, object]] = []
    monkeypatch.setattr(
        "slipstream.loading.load", lambda *_args, **options: loaded.append(options) or nullcontext(transcriber)
    )
    out = tmp_path / "config.json"
    manifests = tmp_path / "words.jsonl", "--turns", tmp_path / "turns.jsonl"
    outcome = cli("train", "calibrate", *manifests, "--model", "tiny", "--out", out)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-2].startswith("end of turn above 0.70: found in 100%")
    assert outcome.out.splitlines()[-1] == str(out)
    assert [(options["beam"], options["mode"]) for options in loaded] == [(1, "live")]  # as ends of turn are
    written = json.loads(out.read_text())["stt_config"]
    assert written["confidence"]["word"]["probability"][0] > written["confidence"]["word"]["probability"][-1]
    assert len(written["end_of_turn"]["heads"]) == 2
    assert written["end_of_turn_above"] == 0.7
