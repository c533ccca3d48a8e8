"""The command line as a whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from tests.cli.conftest import Outcome

import slipstream


def test_help_names_every_command(cli: Callable[..., Outcome]) -> None:
    outcome = cli("--help")
    assert outcome.code == 0
    commands = {line.split()[1] for line in outcome.out.splitlines() if len(line.split()) > 2}
    assert commands >= {"transcribe", "listen", "serve", "api-key", "models", "doctor", "convert"}
    assert commands >= {"evaluate", "data", "train"}


def test_version(cli: Callable[..., Outcome]) -> None:
    assert cli("--version").out == f"slipstream {slipstream.__version__}\n"


def test_runs_as_a_module() -> None:
    run = subprocess.run([sys.executable, "-m", "slipstream", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"slipstream {slipstream.__version__}\n"


def test_a_missing_model_is_an_error_message(cli: Callable[..., Outcome], sound: Callable[..., object]) -> None:
    outcome = cli("transcribe", sound("a.wav", [0.1]), "--model", "no-such-model")
    assert outcome.code == 1
    assert outcome.err.startswith("error: no-such-model is not a folder")


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell's pipe")
def test_a_reader_that_exits_is_not_an_error() -> None:
    command = f"{sys.executable} -m slipstream transcribe --help | head -n 1"
    run = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in run.stderr
