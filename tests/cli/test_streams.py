"""The command line as a process: closed streams, signals, pipes that stall or are left, and terminals."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals, shells and terminals")

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "examples/sample.opus"
SLIPSTREAM = f"{sys.executable} -m slipstream"
FAKE = """
import slipstream, sys, time
from tests.cli.conftest import FakeTranscriber

def tell(index):
    if index == 40:
        sys.stderr.write("frame 40\\n")
        sys.stderr.flush()

slipstream.load = lambda *args, **options: FakeTranscriber(on_step=tell)
from slipstream.cli import main
main()
"""
"""The command line with the fake transcriber, which reports its 40th frame."""

Sound = Callable[..., Path]


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of bash, in which `slipstream` is this command line."""
    command = f'slipstream() {{ {SLIPSTREAM} "$@"; }}; {command}'
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert "Traceback" not in run.stderr
    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    running: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, *map(str, arguments)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[bytes], text: bytes) -> bytes:
    assert process.stderr is not None
    read = b""
    for line in process.stderr:
        read += line
        if text in line:
            return read
    pytest.fail(f"{text!r} is not in {read.decode()}")


# ------------------------------------------------------------------------------------------------------ closed streams


@pytest.mark.parametrize("command", ["transcribe examples/sample.opus", "models", "--help"])
def test_a_closed_standard_output_is_an_error_message(command: str) -> None:
    run = shell(f"slipstream {command} >&-")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.splitlines()[-1] == "error: standard output is closed: redirect it to a file or a pipe"


def test_a_closed_standard_input_is_an_error_message() -> None:
    run = shell("slipstream transcribe - <&-")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.splitlines()[-1].strip() == "standard input is closed: pipe or redirect audio into it"


def test_a_closed_standard_input_is_an_error_for_separate_channels_too() -> None:
    run = shell("slipstream transcribe - --channels separate <&-")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.splitlines()[-1] == "error: standard input is closed: pipe or redirect audio into it"


def test_files_are_written_where_every_stream_is_closed(tmp_path: Path) -> None:
    run = shell(f"slipstream transcribe examples/sample.opus -o {tmp_path} <&- >&- 2>&-")
    assert run.returncode == 0
    expected = shell("slipstream transcribe examples/sample.opus").stdout
    assert expected.strip()
    assert [path.read_text() for path in tmp_path.iterdir()] == [expected]


@pytest.mark.parametrize(("command", "pipe"), [("transcribe examples/sample.opus", "|"), ("models", "|&")])
def test_a_reader_that_exits_causes_no_traceback(command: str, pipe: str) -> None:
    run = shell(f"slipstream {command} {pipe} true; exit ${{PIPESTATUS[0]}}")
    assert run.returncode in (0, 1)


def test_a_full_disk_is_an_error_message() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    run = shell("slipstream transcribe examples/sample.opus > /dev/full")
    assert run.returncode == 1
    assert "standard output: cannot be written: No space left on device" in run.stderr


@pytest.mark.parametrize("command", ["--version", "models", "api-key desk"])
def test_every_command_reports_a_full_disk(command: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    run = shell(f"slipstream {command} > /dev/full")
    assert run.returncode == 1
    assert re.fullmatch(r"error: .* cannot be written: No space left on device\n", run.stderr)


# ------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("module", [b"| typer.", b"| rich.", b"| numpy", b"| onnxruntime"])
def test_ctrl_c_during_the_imports_causes_no_traceback(
    start: Callable[..., subprocess.Popen[bytes]], module: bytes
) -> None:
    process = start("-X", "importtime", "-m", "slipstream", "transcribe", SAMPLE)
    read_until(process, module.replace(b"| ", b""))
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert out == b""
    assert b"Traceback" not in error


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_pipe_that_stalls_and_keeps_its_text(
    start: Callable[..., subprocess.Popen[bytes]], sound: Sound, number: signal.Signals, code: int
) -> None:
    process = start("-c", FAKE, "transcribe", "-")
    assert process.stdin is not None
    process.stdin.write(sound("a.wav", [0.1, 0.2, 0.3, 0.4, 0.5]).read_bytes()[:-1000])
    process.stdin.flush()
    read_until(process, b"frame 40")
    process.send_signal(number)
    assert process.wait(60) == code
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read().startswith(b"10 20 30")
    error = process.stderr.read()
    assert b"Interrupted. The text so far is written." in error
    assert b"Traceback" not in error


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_ends_the_copy_of_a_pipe(
    start: Callable[..., subprocess.Popen[bytes]],
    sound: Sound,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals: int,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    hang = FAKE.replace("flush()", "flush(); time.sleep(600)") if signals == 2 else FAKE
    path = sound("a.wav", [0.1] * 5, [0.2] * 5)
    process = start("-c", hang, "transcribe", "-", "--channels", "separate", "-o", tmp_path / "out")
    assert process.stdin is not None
    process.stdin.write(path.read_bytes()[:-100_000])
    process.stdin.flush()
    for _ in range(600):
        if any(copy.stat().st_size > 300_000 for copy in tmp_path.glob("slipstream-*/audio")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    if signals == 2:
        read_until(process, b"frame 40")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        for _ in range(300):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
                break
            process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert b"Traceback" not in error
    assert not list(tmp_path.glob("slipstream-*"))
    if signals == 1:
        texts = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
        assert texts == {"stdin.ch1.txt.partial": "10 10 10\n", "stdin.ch2.txt.partial": "20 20 20\n"}


def test_a_second_signal_ends_a_command_that_hangs(start: Callable[..., subprocess.Popen[bytes]], sound: Sound) -> None:
    process = start("-c", FAKE.replace("flush()", "flush(); time.sleep(600)"), "transcribe", sound("a.wav", [0.1] * 5))
    read_until(process, b"frame 40")
    for _ in range(300):
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
            break
    assert process.returncode == 143


# ----------------------------------------------------------------------------------------------------------- terminals


def at_a_terminal(command: str) -> str:
    """The output of a bash command in a pseudo-terminal."""
    import pty

    process, terminal = pty.fork()
    if not process:
        os.chdir(ROOT)
        os.execvp("bash", ["bash", "-c", f'slipstream() {{ {SLIPSTREAM} "$@"; }}; {command}'])
    shown = b""
    timer = threading.Timer(120, os.kill, (process, signal.SIGKILL))
    timer.start()
    with suppress(OSError):  # the end of a terminal
        while data := os.read(terminal, 1 << 16):
            shown += data
    timer.cancel()
    os.waitpid(process, 0)
    os.close(terminal)
    return shown.decode()


@pytest.mark.parametrize("suffix", ["wav", "opus"])
def test_a_pipe_at_a_terminal_is_transcribed_from_its_start(sound: Sound, suffix: str) -> None:
    path = sound("a.wav", [0.1, 0.2, 0.3]) if suffix == "wav" else SAMPLE
    shown = at_a_terminal(f"{shlex.quote(sys.executable)} -c {shlex.quote(FAKE)} transcribe <(cat {path})")
    expected = shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(FAKE)} transcribe {path}").stdout.strip()
    assert expected
    assert expected in shown
    assert "Traceback" not in shown
