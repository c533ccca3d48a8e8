"""The command `slipstream transcribe`: output, files and failures."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from tests.cli.conftest import Loaded, Outcome

from slipstream.errors import SlipstreamError

Cli = Callable[..., Outcome]
Sound = Callable[..., Path]


def test_text_goes_to_standard_output_and_the_rest_does_not(cli: Cli, sound: Sound, loaded: Loaded) -> None:
    outcome = cli("transcribe", sound("a.wav", [0.1, 0.2, 0.3]))
    assert (outcome.code, outcome.out) == (0, "10 20 30\n")
    assert "kyutai/stt-1b-en_fr" in outcome.err
    assert "about 2.4 GB" in outcome.err
    assert loaded.transcriber.closed


def test_another_model_needs_no_hint(cli: Cli, sound: Sound, loaded: Loaded) -> None:
    where = ["--model", "x/y", "--device", "cpu", "--backend", "onnx", "--quantize", "int8", "--threads", "2"]
    outcome = cli("transcribe", sound("a.wav", [0.1]), *where)
    assert outcome.err == ""
    expected = {"device": "cpu", "backend": "onnx", "quantize": "int8", "threads": 2, "slots": 1, "beam": 1}
    assert (loaded.model, loaded.arguments) == ("x/y", expected | {"mode": "recordings"})


def test_words_with_times(cli: Cli, sound: Sound, loaded: Loaded) -> None:
    outcome = cli("transcribe", sound("a.wav", [0.1, 0.2]), "--words")
    assert outcome.out.split() == ["0.00", "0.50", "0.90", "10", "1.00", "1.50", "0.90", "20"]


def test_json(cli: Cli, sound: Sound, loaded: Loaded) -> None:
    got = json.loads(cli("transcribe", sound("a.wav", [0.1, 0.2]), "-f", "json").out)
    assert got["text"] == "10 20"
    assert got["words"][1] == {"text": "20", "start": 1.0, "end": 1.5, "confidence": 0.9}
    assert (got["duration"], got["model"], got["delay"]) == (2.0, "fake", 0.5)


def test_each_input_has_its_own_output_file(cli: Cli, sound: Sound, loaded: Loaded, tmp_path: Path) -> None:
    for n in range(5):
        sound(f"talks/{n}.wav", [n / 10] * (5 - n))
    outcome = cli("transcribe", tmp_path / "talks", "-o", tmp_path / "out", "--slots", "3")
    assert (outcome.code, outcome.out) == (0, "")
    assert loaded.arguments["slots"] == 3
    texts = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert texts == {f"{n}.txt": " ".join([f"{10 * n}"] * (5 - n)) + "\n" for n in range(5)}


def test_several_files_on_standard_output_keep_their_order(cli: Cli, sound: Sound, loaded: Loaded) -> None:
    long, short = sound("long.wav", [0.1] * 8), sound("short.wav", [0.2])
    outcome = cli("transcribe", long, short, "--slots", "2")
    assert outcome.out == f"{long}:\n{' '.join(['10'] * 8)}\n\n{short}:\n20\n\n"


def test_separate_channels(cli: Cli, sound: Sound, loaded: Loaded, tmp_path: Path) -> None:
    path = sound("call.wav", [0.1, 0.2], [0.3, 0.4])
    assert cli("transcribe", path).out == "20 30\n"
    assert cli("transcribe", path, "--channels", "separate", "-o", tmp_path / "out", "--slots", "2").code == 0
    assert (tmp_path / "out/call.ch1.txt").read_text() == "10 20\n"
    assert (tmp_path / "out/call.ch2.txt").read_text() == "30 40\n"


def test_standard_input(cli: Cli, sound: Sound, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sound("call.wav", [0.1, 0.2], [0.3, 0.4]).read_bytes()
    for arguments, expected in (([], "20 30\n"), (["--channels", "separate"], "10 20")):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        outcome = cli("transcribe", "-", *arguments)
        assert (outcome.code, expected in outcome.out) == (0, True)


def test_raw_audio(cli: Cli, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.repeat([0.1, 0.25], 8000).astype("<f4").tobytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    outcome = cli("transcribe", "-", "--raw", "pcm_f32le", "--raw-rate", "8000")
    assert len(outcome.out.split()) == 2


def test_resume_skips_finished_inputs(cli: Cli, sound: Sound, loaded: Loaded, tmp_path: Path) -> None:
    first, second = sound("a.wav", [0.1]), sound("b.wav", [0.2])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.txt").write_text("kept\n")
    outcome = cli("transcribe", first, second, "-o", tmp_path / "out", "--resume")
    assert outcome.code == 0
    assert f"1 of 2 are already done:\n  {first}: skipped, {tmp_path / 'out/a.txt'} exists\n" in outcome.err
    assert (tmp_path / "out/a.txt").read_text() == "kept\n"
    assert (tmp_path / "out/b.txt").read_text() == "20\n"
    loaded.model = None
    assert cli("transcribe", first, second, "-o", tmp_path / "out", "--resume").code == 0
    assert loaded.model is None


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("txt", ""),
        ("txt", "\n"),
        ("srt", ""),
        ("vtt", "WEBVTT\n"),
        ("tsv", "start\tend\tconfidence\ttext\n"),
        ("jsonl", ""),
        ("json", '{"text": "", "words": []}'),
        ("json", '{"text": "cut off'),
        ("json", ""),
    ],
)
def test_resume_repeats_inputs_without_text(
    cli: Cli, sound: Sound, loaded: Loaded, tmp_path: Path, format: str, content: str
) -> None:
    path, done = sound("a.wav", [0.1]), tmp_path / f"out/a.{format}"
    done.parent.mkdir()
    done.write_text(content)
    outcome = cli("transcribe", path, "-o", done.parent, "-f", format, "--resume")
    assert outcome.code == 0
    assert f"0 of 1 are already done.\n  {path}: repeated, {done} has no text\n" in outcome.err
    assert "10" in done.read_text()
    assert "1 of 1 are already done" in cli("transcribe", path, "-o", done.parent, "-f", format, "--resume").err


def test_an_earlier_transcript_is_not_replaced_silently(cli: Cli, sound: Sound, loaded: Loaded, tmp_path: Path) -> None:
    path, done = sound("a.wav", [0.1]), tmp_path / "out/a.txt"
    assert "replaces" not in cli("transcribe", path, "-o", done.parent).err
    assert f"{done}: replaces an earlier transcript\n" in cli("transcribe", path, "-o", done.parent).err


def test_delay_report(cli: Cli, sound: Sound, loaded: Loaded) -> None:
    outcome = cli("transcribe", sound("a.wav", [0.1, 0.2, 0.3]), "--delay-report")
    assert "3.0 s transcribed in" in outcome.err
    assert "last word 12 ms after the end" in outcome.err
    # Each word ends in mid-second and its text comes with the frame after the second: 12.5 frames, rounded.
    assert "median 0.46 s, at most 0.50 s" in outcome.err


def test_warnings_of_the_library_are_shown(cli: Cli, sound: Sound, loaded: Loaded) -> None:
    loaded.transcriber.on_step = lambda index: logging.getLogger("slipstream.audio").warning("frame %d is odd", index)
    outcome = cli("transcribe", sound("a.wav", [0.08]))
    assert outcome.code == 0
    assert "warning: frame 12 is odd\n" in outcome.err


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("name", ["a.partial.wav", ".a.partial.wav", "a.txt.wav", ".a.txt.wav", "a.txt.partial.wav"])
def test_no_result_is_removed_as_an_old_partial_transcript(
    cli: Cli, sound: Sound, loaded: Loaded, tmp_path: Path, name: str
) -> None:
    sound("part/a.wav", [0.1])
    sound(f"part/{name}", [0.2])
    for _ in range(2):
        assert cli("transcribe", tmp_path / "part", "-o", tmp_path / "out").code == 0
        texts = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
        assert texts == {"a.txt": "10\n", name.removesuffix("wav") + "txt": "20\n"}


def test_a_pipe_that_is_too_long_to_copy(
    cli: Cli, sound: Sound, loaded: Loaded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("slipstream.audio.source.SPOOL_BYTES", 10_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(sound("a.wav", [0.1]).read_bytes())))
    outcome = cli("transcribe", "-", "--channels", "separate")
    assert outcome.code == 1
    assert outcome.err.startswith("error: standard input: is a pipe with more than 0 GiB")
    assert not list(tmp_path.glob("slipstream-*"))


def test_a_pipe_that_does_not_fit_on_the_disk(
    cli: Cli, sound: Sound, loaded: Loaded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    monkeypatch.setattr("slipstream.cli.console.tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("slipstream.cli.transcribe.sources.COPY_NAME", "/dev/full")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(sound("a.wav", [0.1]).read_bytes())))
    outcome = cli("transcribe", "-", "--channels", "separate")
    assert outcome.code == 1
    assert outcome.err.startswith("error: standard input: cannot be copied to ")
    assert "No space left on device" in outcome.err


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"no audio", "not audio that FFmpeg can read")])
def test_a_pipe_without_audio_is_named_by_its_own_name(
    cli: Cli, loaded: Loaded, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    outcome = cli("transcribe", "-", "--channels", "separate")
    assert outcome.code == 1
    assert f"standard input: {message}" in outcome.err
    assert "/audio" not in outcome.err


def test_a_name_that_is_too_long(cli: Cli, loaded: Loaded) -> None:
    outcome = cli("transcribe", "a" * 5000)
    assert outcome.code == 1
    assert outcome.err == f"error: {'a' * 80}: cannot be read: File name too long\n"


def test_a_missing_file_is_reported_before_the_model_is_loaded(cli: Cli, loaded: Loaded, tmp_path: Path) -> None:
    outcome = cli("transcribe", tmp_path / "gone.mp3")
    assert (outcome.code, outcome.err) == (1, f"error: {tmp_path / 'gone.mp3'}: no such file\n")
    assert loaded.model is None


def test_one_broken_file_does_not_stop_the_others(cli: Cli, sound: Sound, loaded: Loaded, tmp_path: Path) -> None:
    letter = tmp_path / "letter.mp3"
    letter.write_text("Dear Sir or Madam")
    good, gone = sound("good.wav", [0.3]), tmp_path / "gone.wav"
    outcome = cli("transcribe", letter, good, gone, "-o", tmp_path / "out")
    assert outcome.code == 1
    assert (tmp_path / "out/good.txt").read_text() == "30\n"
    assert "2 of 3 failed" in outcome.err
    assert f"{letter}: not audio that FFmpeg can read" in outcome.err
    assert f"{gone}: no such file" in outcome.err
    assert "Traceback" not in outcome.err


def test_an_error_in_the_middle_of_a_file_keeps_the_words_before_it(
    cli: Cli, sound: Sound, loaded: Loaded, tmp_path: Path
) -> None:
    def break_off(index: int) -> None:
        if index == 40:
            raise SlipstreamError("the connection was lost")

    loaded.transcriber.on_step = break_off
    paths = [sound("a.wav", [0.1] * 4), sound("b.wav", [0.2] * 2)]
    outcome = cli("transcribe", *paths, "-o", tmp_path / "out")
    assert outcome.code == 1
    assert f"1 of 2 failed:\n  {paths[0]}: the connection was lost\n" in outcome.err
    texts = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert texts == {"a.txt.partial": "10 10 10\n", "b.txt": "20 20\n"}
    assert cli("transcribe", paths[0]).out == ""


@pytest.mark.parametrize(
    ("arguments", "beam"), [([], 2), (["--beam", "1"], 1), (["--beam", "4"], 4), (["--alternatives", "3"], 3)]
)
def test_the_model_sets_the_beam_unless_an_option_does(
    cli: Cli, sound: Sound, loaded: Loaded, arguments: list[str], beam: int
) -> None:
    loaded.beam = 2
    assert cli("transcribe", sound("a.wav", [0.1]), *arguments).code == 0
    assert loaded.transcriber.options.hints.width == beam
    assert (loaded.arguments["slots"], loaded.arguments["beam"]) == (1, beam)


@pytest.mark.parametrize(("arguments", "beam"), [([], None), (["--beam", "1"], 1), (["--beam", "2"], 2)])
def test_ray_takes_the_beam(
    cli: Cli, sound: Sound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], beam: int | None
) -> None:
    beams: list[int | None] = []
    monkeypatch.setattr("slipstream.cli.transcribe.on_ray.transcribe_on_ray", lambda *_, beam, **__: beams.append(beam))
    where = ["--ray", "local", "-o", tmp_path / "out.jsonl"]
    assert cli("transcribe", sound("a.wav", [0.1]), *where, *arguments).code == 0
    assert beams == [beam]


def test_text_like_the_speech_implies_a_beam(cli: Cli, sound: Sound, loaded: Loaded, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("ten words")
    assert cli("transcribe", sound("a.wav", [0.1]), "--lm", notes).code == 0
    assert loaded.transcriber.options.hints.width == 2


def test_the_least_confidence_is_an_option_of_the_session(cli: Cli, sound: Sound, loaded: Loaded) -> None:
    for options, expected in ([], None), (["--min-confidence", "0.5"], 0.5):
        assert cli("transcribe", sound("a.wav", [0.1]), *options).code == 0
        assert loaded.transcriber.options.min_confidence == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--words", "-f", "srt"], "it applies to txt only"),
        (["--resume"], "it needs an output folder"),
        (["--actors", "2"], "it applies to --ray only"),
        (["--ray", "local"], "it needs -o"),
        (["--ray", "local", "-o", "out", "--channels", "separate"], "takes only --model"),
        (["--ray", "local", "-o", "out", "--keywords", "fox"], "takes only --model"),
        (["--ray", "local", "-o", "out", "-f", "json"], "takes only --model"),
        (["--server", "http://127.0.0.1:9", "--device", "cuda"], "--server uses the model of the server"),
        (["--server", "http://127.0.0.1:9", "--threads", "2"], "--server uses the model of the server"),
        (["--server", "http://127.0.0.1:9", "--min-confidence", "0.5"], "not available with --server"),
        (["--min-confidence", "1.5"], "min-confidence"),
        (["--language", "xx"], "language 'xx': expected one of this model (en, fr, auto), or none for any other"),
        (["-f", "docx"], "docx"),
        (["--slots", "0"], "slots"),
        (["--raw-rate", "8000"], "add --raw"),
        (["-o", __file__], "is not a folder"),
        (["-o", "talk.srt"], "it names a folder, and talk.srt looks like a file: for one file use > talk.srt"),
        (["--max-line-width", "40"], "it applies to subtitles (srt, vtt) only, not to txt"),
        (["-f", "srt", "--max-words", "0"], "max-words"),
    ],
)
def test_wrong_usage(cli: Cli, sound: Sound, loaded: Loaded, arguments: list[str], message: str) -> None:
    outcome = cli("transcribe", sound("a.wav", [0.1]), *arguments)
    assert outcome.code == 2
    assert message in " ".join(outcome.err.replace("│", " ").split())


@pytest.mark.parametrize(
    "options",
    [["--max-line-width", "5", "--max-line-count", "1"], ["--max_line_width", "5", "--max_words_per_line", "2"]],
)
def test_subtitles_in_a_layout(cli: Cli, sound: Sound, loaded: Loaded, options: list[str]) -> None:
    outcome = cli("transcribe", sound("a.wav", [0.1, 0.2, 0.3, 0.4]), "-f", "srt", *options)
    assert [line for line in outcome.out.splitlines() if line[:1].isdigit() and " --> " not in line] == [
        "1", "10 20", "2", "30 40"
    ]  # fmt: skip


def test_several_subtitles_need_a_folder(cli: Cli, sound: Sound, loaded: Loaded) -> None:
    outcome = cli("transcribe", sound("a.wav", [0.1]), sound("b.wav", [0.1]), "-f", "srt")
    assert outcome.code == 2
    assert "need a folder: -o DIR" in outcome.err


def test_a_folder_that_cannot_be_written_is_an_error_before_loading(
    cli: Cli, sound: Sound, loaded: Loaded, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    outcome = cli("transcribe", sound("a.wav", [0.1]), "-o", tmp_path / "file" / "out")
    assert outcome.code == 1
    assert f"{tmp_path / 'file/out'}: no file can be written to this folder: Not a directory" in outcome.err
    assert loaded.model is None


def test_disk_full_leaves_no_half_file(
    cli: Cli, sound: Sound, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        write_bytes(self, data[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = sound("a.wav", [0.1])
    monkeypatch.setattr(Path, "write_bytes", full)
    outcome = cli("transcribe", path, "-o", tmp_path / "out")
    assert outcome.code == 1
    assert f"{tmp_path / 'out/a.txt'}: cannot be written: No space left on device" in outcome.err
    assert list((tmp_path / "out").iterdir()) == []


def test_standard_output_full(cli: Cli, sound: Sound, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = sound("a.wav", [0.1])
    monkeypatch.setattr(sys, "stdout", Full())
    outcome = cli("transcribe", path)
    assert outcome.code == 1
    assert "standard output: cannot be written: No space left on device" in outcome.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_text_up_to_it(
    cli: Cli, sound: Sound, loaded: Loaded, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    def slow(index: int) -> None:
        if index == 40:
            os.kill(os.getpid(), number)
        time.sleep(0.002)

    loaded.transcriber.on_step = slow
    paths = [sound("a.wav", [0.1] * 40), sound("b.wav", [0.2] * 40)]
    outcome = cli("transcribe", *paths, "-o", tmp_path / "out")
    assert outcome.code == code
    assert "Interrupted" in outcome.err
    (partial,) = (tmp_path / "out").iterdir()
    assert partial.name == "a.txt.partial"
    assert 3 <= len(partial.read_text().split()) < 40

    loaded.transcriber.on_step = lambda index: None
    assert cli("transcribe", *paths, "-o", tmp_path / "out", "--resume").code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.txt", "b.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("arguments", [[], ["--channels", "separate"]])
def test_a_pipe_as_a_file_on_a_terminal(
    cli: Cli, sound: Sound, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr("slipstream.cli.progress.console", Console(file=io.StringIO(), force_terminal=True))
    data = sound("a.wav", [0.1, 0.2]).read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    outcome = cli("transcribe", pipe, *arguments)
    writer.join()
    assert outcome.code == 0
    assert "10 20\n" in outcome.out


def test_the_track_is_passed_on(cli: Cli, sound: Sound, loaded: Loaded) -> None:
    path = sound("a.wav", [0.1, 0.2])
    assert cli("transcribe", path, "--track", "1").out == "10 20\n"
    outcome = cli("transcribe", path, "--track", "2")
    assert outcome.code == 1
    assert "has no audio track 2: choose 1 (pcm_s16le" in outcome.err
    assert cli("transcribe", path, "--raw", "mulaw", "--track", "1").code == 2
