"""Commands whose extra is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("command", "extra", "package"),
    [
        ("serve", "server", "starlette"),
        ("wyoming", "server", "starlette"),
        ("wyoming --uri tcp://0.0.0.0:0 --allow-remote --zeroconf x", "wyoming", "zeroconf"),
        ("transcribe examples/sample.opus --server http://127.0.0.1:9", "client", "websockets"),
        ("transcribe a.wav --ray local -o a.jsonl", "ray", "ray"),
        ("train codec run.toml", "train", "torch"),
        ("train lm run.toml", "train", "torch"),
        ("data pack m.jsonl -o x --samples", "train", "torch"),
        ("data align m.jsonl -o x --aligner x", "train", "torch"),
    ],
)
def test_a_command_names_its_missing_extra(command: str, extra: str, package: str) -> None:
    run = run_without(package, command)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert f'needs the extra "{extra}": pip install "slipstream-stt[{extra}]"\n' in run.stderr


@pytest.mark.parametrize("command", ["train tokenizer texts.txt -o x.model", "data synthesise texts.txt -o x"])
def test_a_command_that_needs_no_torch_runs_without_it(command: str) -> None:
    run = run_without("torch", command)
    assert run.returncode == 1
    assert run.stderr == "error: texts.txt: cannot be read: No such file or directory\n"


def run_without(package: str, command: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.modules[{package!r}] = None; from slipstream.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *command.split()], capture_output=True, text=True, check=False
    )
