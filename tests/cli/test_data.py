"""`slipstream data`: what becomes of a manifest's lines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.models import whisper_codec_config
from tests.train import world
from typer.testing import CliRunner, Result

from slipstream.cli.data import app
from slipstream.data.pack_codec import check_tokens
from slipstream.data.packs import Pack
from slipstream.data.wave import write_wave
from slipstream.errors import BackendError, SlipstreamError
from slipstream.nn.mimi import Mimi
from slipstream.train.artifacts import export_codec
from slipstream.train.launch import load_codec

SAMPLE = Path(__file__).parents[2] / "examples" / "sample.opus"


def _manifest(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def _read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _refused(*arguments: object) -> str:
    """The error message of the command."""
    error = _run(*arguments).exception
    assert isinstance(error, SlipstreamError), error
    return str(error)


@pytest.fixture
def transcribed(tmp_path: Path) -> tuple[str, list[dict[str, object]]]:
    """What the command prints and writes for a recording with a text, one without, silence, and no audio."""
    write_wave(tmp_path / "silence.wav", np.zeros(24_000, np.float32))
    (tmp_path / "bad.wav").write_text("no audio")
    manifest = _manifest(
        tmp_path / "all.jsonl",
        {"audio": str(SAMPLE), "text": "given"},
        {"audio": str(SAMPLE), "text": "", "dataset": "own"},
        {"audio": "silence.wav", "text": ""},
        {"audio": "bad.wav", "text": ""},
    )
    out = tmp_path / "out.jsonl"
    result = CliRunner().invoke(app, ["transcribe", str(manifest), "-m", "tiny", "-o", str(out), "--streams", "2"])
    assert result.exit_code == 0, result.output
    return result.output, _read(out)


def test_recordings_without_text_are_transcribed(transcribed: tuple[str, list[dict[str, object]]]) -> None:
    output, (given, written) = transcribed
    assert given == {"audio": str(SAMPLE), "text": "given", "lang": "en"}
    assert written["dataset"] == "own"
    words = written["words"]
    assert isinstance(words, list)
    assert written["text"] == " ".join(word[0] for word in words)
    assert len(words) > 20
    assert "1 recording transcribed; left out: 1 without words, 1 that cannot be read" in output
    assert "bad.wav" in output


def test_recordings_are_cut_at_the_words_of_the_manifest(tmp_path: Path) -> None:
    words = [["one", 0.5, 1.0], ["two", 3.0, 3.5], ["three", 4.0, 4.5]]
    write_wave(tmp_path / "long.wav", np.zeros(5 * 24_000, np.float32))
    manifest = _manifest(tmp_path / "all.jsonl", {"audio": "long.wav", "text": "one two three", "words": words})
    result = CliRunner().invoke(app, ["cut", str(manifest), "-o", str(tmp_path / "cut"), "--seconds", "4"])
    assert result.exit_code == 0, result.output
    pieces = _read(tmp_path / "cut" / "manifest.jsonl")
    assert [(piece["text"], piece["seconds"]) for piece in pieces] == [("one", 2.0), ("two three", 3.0)]
    assert pieces[1]["words"] == [["two", 1.0, 1.5], ["three", 2.0, 2.5]]


def test_cutting_continues_after_a_recording_that_cannot_be_cut(tmp_path: Path) -> None:
    for folder, level in (("p", 0.1), ("q", 0.2)):
        (tmp_path / folder).mkdir()
        write_wave(tmp_path / folder / "talk.wav", np.full(4 * 24_000, level, np.float32))
    words = [["one", 0.5, 1.0], ["two", 2.0, 3.5]]
    manifest = _manifest(
        tmp_path / "all.jsonl",
        {"audio": "p/talk.wav", "text": "one two", "words": words},
        {"audio": "missing.wav", "text": "one two", "words": words},
        {"audio": "q/talk.wav", "text": "one two", "words": words},
    )
    result = _run("cut", manifest, "-o", tmp_path / "cut", "--seconds", "2")
    assert result.exit_code == 0, result.output
    pieces = _read(tmp_path / "cut" / "manifest.jsonl")
    assert len({piece["audio"] for piece in pieces}) == 4
    assert "all.jsonl, line 2: " in result.output
    assert "4 recordings, 8.0 s in" in result.output
    assert "1 left out" in result.output
    assert "2 pieces longer than 2 s" in result.output
    assert _run("cut", manifest, "-o", tmp_path / "cut", "--seconds", "0.3").exit_code == 2


def test_packing_reports_recordings_that_are_left_out(tmp_path: Path) -> None:
    write_wave(tmp_path / "good.wav", np.zeros(24_000, np.float32))
    lines: list[dict[str, object]] = [
        {"audio": f"{name}.wav", "text": "a", "split": "train"} for name in ("good", "bad")
    ]
    manifest = _manifest(tmp_path / "all.jsonl", *lines)
    result = _run("pack", manifest, "-o", tmp_path / "pack", "--samples", "--split", "train")
    assert "1 recording in" in result.output
    assert "1 left out" in result.output
    assert "all.jsonl, line 2: " in result.output
    asked = ("pack", manifest, "-o", tmp_path / "other", "--samples", "--split", "test")
    assert "no recording is of split 'test'; there are train" in _refused(*asked)
    empty = _manifest(tmp_path / "empty.jsonl")
    assert "empty.jsonl: has no recordings" in _refused("pack", empty, "-o", tmp_path / "other", "--samples")
    assert not (tmp_path / "other").exists()


def test_options_of_pack_that_contradict_each_other_are_refused_first(tmp_path: Path) -> None:
    for options in ((), ("--samples", "--model", "tiny")):
        message = _refused("pack", tmp_path / "missing.jsonl", "-o", tmp_path / "pack", *options)
        assert message.startswith("give exactly one of --model MODEL")
    asked = ("pack", tmp_path / "missing.jsonl", "-o", tmp_path / "pack", "--model", "tiny", "--opus")
    assert _refused(*asked) == "--opus stores samples: give --samples too"


def test_a_pack_of_tokens_names_its_codec(tmp_path: Path) -> None:
    model = str(world.base_folder(tmp_path) / "base")
    write_wave(tmp_path / "good.wav", np.zeros(24_000, np.float32))
    manifest = _manifest(tmp_path / "all.jsonl", {"audio": "good.wav", "text": ""})
    assert _run("pack", manifest, "-o", tmp_path / "made", "--model", model).exit_code == 0
    pack = Pack(tmp_path / "made")
    assert pack.codec is not None
    assert pack.codec.model == model
    assert pack.codec.tail == 0
    check_tokens([pack], load_codec(model), model, 64)
    export_codec(Mimi(whisper_codec_config()), tmp_path / "late")
    assert _run("pack", manifest, "-o", tmp_path / "made", "--model", tmp_path / "late").exit_code == 0
    late = Pack(tmp_path / "made")
    assert late.codec is not None
    assert late.codec.tail == 3  # so that its tokens hold the end of the recording
    assert late.clips[0].length == 13 + 3


def test_validation_reports_invalid_lines_and_silence(tmp_path: Path) -> None:
    write_wave(tmp_path / "good.wav", np.zeros(90 * 24_000, np.float32))
    manifest = _manifest(tmp_path / "all.jsonl", {"audio": "good.wav", "text": ""}, {"audio": "good.wav"})
    output = _run("validate", manifest).output
    assert "1 good recording (1 of them without text), 1.5 min; 1 with bad line" in output


def test_a_manifest_without_recordings_is_an_error(tmp_path: Path) -> None:
    empty, out = _manifest(tmp_path / "empty.jsonl"), tmp_path / "out.jsonl"
    assert "empty.jsonl: has no recordings" in _refused("validate", empty)
    assert "empty.jsonl: has no recordings" in _refused("transcribe", empty, "-m", "tiny", "-o", out)
    bad = _manifest(tmp_path / "bad.jsonl", {"audio": "good.wav"})
    assert _run("validate", bad).exit_code == 0
    assert "bad.jsonl: no recording is good" in _refused("validate", bad, "--out", out)
    assert not out.exists()


def test_aligning_leaves_out_recordings_whose_text_does_not_fit(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    if shutil.which("espeak-ng") is None:
        pytest.skip("phones need espeak-ng")
    said = (
        "Good morning, and thank you for calling. The train to London leaves at seven thirty, from platform four. "
        "Would you like to book a seat by the window?"
    )
    other = " ".join(reversed(said.split()))
    manifest = _manifest(
        tmp_path / "all.jsonl",
        {"audio": str(SAMPLE), "text": said},
        {"audio": str(SAMPLE), "text": other},
        {"audio": str(SAMPLE), "text": ""},
        {"audio": str(SAMPLE), "text": said, "lang": "xx"},
        {"audio": "missing.wav", "text": said},
    )
    result = _run("align", manifest, "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 0, result.output
    aligned, silent = _read(tmp_path / "out.jsonl")
    assert (aligned["text"], silent["text"]) == (said, "")
    assert "words" not in silent
    assert "1 recording aligned, 3 left out; 1 without text" in result.output
    assert "line 2: " in result.output
    assert "line 4: " in result.output
    assert "espeak-ng has no voice 'xx'" in result.output
    assert "fit: lowest -" in result.output


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace espeak-ng by a synthesiser that cannot speak texts with "no"."""
    from slipstream.data.espeak import Espeak
    from slipstream.data.synthesis import Utterance, Voice

    def speak(self: Espeak, text: str, voice: Voice) -> Utterance:
        if "no" in text:
            raise SlipstreamError(f"cannot speak {text!r}")
        return Utterance(np.full(24_000, 0.1, np.float32), 24_000, (), ())

    monkeypatch.setattr(Espeak, "speak", speak)


@pytest.mark.usefixtures("spoken")
def test_parts_of_a_text_are_spoken_into_one_folder(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one\ntwo\nno\nfour\n")
    out = tmp_path / "out"
    command = ("synthesise", texts, "-o", out, "--clean")
    first = _run(*command, "--limit", 2)
    assert first.exit_code == 0, first.output
    second = _run(*command, "--start", 1)
    assert "sentence 3: cannot speak 'no'" in second.output
    assert "1 sentence left out" in second.output
    lines = _read(out / "manifest.jsonl")
    assert [line["text"] for line in lines] == ["one", "two", "four"]
    assert len({line["audio"] for line in lines}) == len(list(out.glob("*.wav"))) == 3


@pytest.mark.usefixtures("spoken")
def test_synthesis_without_sentences_is_an_error(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("no\n")
    command = ("synthesise", texts, "-o", tmp_path / "out")
    assert "texts.txt: no sentence is left of 1 after --start 1" in _refused(*command, "--start", 1)
    assert "espeak-ng cannot speak any of its sentences" in _refused(*command)
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_a_missing_engine_is_not_reported_for_each_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slipstream.data import espeak

    def missing(path: str) -> None:
        raise OSError(path)

    monkeypatch.setattr("ctypes.CDLL", missing)
    espeak._library.cache_clear()
    (tmp_path / "texts.txt").write_text("one\n")
    result = _run("synthesise", tmp_path / "texts.txt", "-o", tmp_path / "out")
    assert isinstance(result.exception, BackendError)
    assert str(result.exception) == "libespeak-ng is not installed: install the package espeak-ng"


def test_a_split_leaves_something_for_training(tmp_path: Path) -> None:
    lines = [{"audio": f"{n}.wav", "text": "a", "speaker": f"s{n}", "seconds": 1.0} for n in range(4)]
    manifest = _manifest(tmp_path / "all.jsonl", *lines)
    result = _run("split", manifest, "-o", tmp_path / "splits", "--valid", 0.7, "--test", 0.3)
    assert result.exit_code == 2
    assert "its sum with --test must be below 1" in result.output
    assert not (tmp_path / "splits").exists()


def test_recordings_are_split_by_speaker(tmp_path: Path) -> None:
    lines = [
        {"audio": f"{n}.wav", "text": f"text {chr(97 + n // 2)}", "speaker": f"s{n % 10}", "seconds": 1.0}
        for n in range(40)
    ]
    manifest = _manifest(tmp_path / "all.jsonl", *lines)
    tests = _manifest(tmp_path / "tests.jsonl", {"audio": "t.wav", "text": "Text a."})
    result = _run(
        "split",
        manifest,
        "-o",
        tmp_path / "splits",
        "--valid",
        0.1,
        "--test",
        0.1,
        "--no-shared-text",
        "--exclude",
        tests,
    )
    assert result.exit_code == 0, result.output
    splits = {name: _read(tmp_path / "splits" / f"{name}.jsonl") for name in ("train", "valid", "test")}
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        for key in ("speaker", "text"):
            assert not {line[key] for line in splits[a]} & {line[key] for line in splits[b]}
    assert all(line["split"] == name and line["text"] != "text a" for name, of in splits.items() for line in of)
    assert "their text is in another split" in result.output
