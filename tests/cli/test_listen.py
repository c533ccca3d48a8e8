"""`slipstream listen`: the microphone as live text."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.cli.conftest import Loaded, Outcome

from slipstream import audio
from slipstream.audio import InputDevice
from slipstream.cli.listen import show_live
from slipstream.events import EndOfTurn, Final, OpenWord, PartialWord, Ready, Turn, Word

Cli = Callable[..., Outcome]
BUILT_IN = InputDevice(index=2, name="Built-in", channels=1, sample_rate=48_000, is_default=True)


@pytest.fixture
def microphone(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A microphone that records noises, a second each, until Ctrl-C in the third; the list has the requested ones."""
    asked: list[Any] = []

    def record(device: Any = None) -> Iterator[np.ndarray]:
        asked.append(device)
        for second in range(1, 100):
            if second == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield np.full((1, 24_000), second / 10, np.float32)

    monkeypatch.setattr(audio, "microphone", record)
    monkeypatch.setattr(audio, "input_devices", lambda: [BUILT_IN])
    return asked


def test_listens_until_interrupted_and_then_ends_in_order(cli: Cli, loaded: Loaded, microphone: list[Any]) -> None:
    outcome = cli("listen", "--microphone", "2")
    assert (outcome.code, outcome.out) == (0, "10 20 30\n")
    assert "Ctrl-C" in outcome.err
    assert microphone == [2]
    assert loaded.transcriber.closed
    assert loaded.arguments["mode"] == "live"


def test_lists_microphones(cli: Cli, microphone: list[Any]) -> None:
    assert cli("listen", "--list-microphones").out == "  2  Built-in, 48000 Hz  (default)\n"


def test_an_empty_list_of_microphones_is_reported(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "input_devices", list)
    outcome = cli("listen", "--list-microphones")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "No microphone found.\n")


def test_no_model_is_loaded_without_a_microphone(cli: Cli, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "input_devices", list)
    outcome = cli("listen")
    assert (outcome.code, outcome.err) == (1, "error: no microphone found: connect one, or see `slipstream doctor`\n")
    assert loaded.model is None


def test_a_line_for_each_turn(capsys: pytest.CaptureFixture[str]) -> None:
    events = [
        Ready(),
        PartialWord("He", 0.0),
        OpenWord("Hello", 0.0, 0.9),
        Word("Hello", 0.0, 0.4),
        Word("there.", 0.5, 0.9),
        EndOfTurn(1.5),
        Turn(0.0, 0.9),
        Word("Yes?", 2.0, 2.4),
        Final(duration=3.0, flush_seconds=0.1),
    ]
    show_live(events)
    assert capsys.readouterr().out == "Hello there.\nYes?\n"
