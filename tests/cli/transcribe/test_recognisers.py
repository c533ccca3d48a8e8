"""`slipstream transcribe --server`: the same command with the model of a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import Loaded, Outcome
from tests.fakes import ScriptRunner, silence, sound_of
from tests.server.harness import serving

Cli = Callable[..., Outcome]
SPOKEN = ["fox", "sea", "dog"]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    audio_S = np.concatenate([piece for word in SPOKEN for piece in (sound_of(word, 5), silence(8))])
    path = tmp_path / "talk.raw"
    path.write_bytes(audio_S.astype("<f4").tobytes())
    return path


def test_a_server_transcribes(cli: Cli, recording: Path, loaded: Loaded) -> None:
    with serving(ScriptRunner(slots=2)) as server:
        outcome = cli("transcribe", recording, "--raw", "pcm_f32le", "-f", "json", "--server", server.http)
    assert outcome.code == 0, outcome.err
    got = json.loads(outcome.out)
    assert [word["text"] for word in got["words"]] == SPOKEN
    assert got["delay"] == 0.48
    assert got["model"] not in ("", server.http)
    assert loaded.model is None


def test_broken_audio_ends_the_stream(cli: Cli, recording: Path) -> None:
    samples = np.fromfile(recording, "<f4")
    samples[-1] = np.nan
    samples.tofile(recording)
    with serving(ScriptRunner()) as server:
        outcome = cli("transcribe", recording, "--raw", "pcm_f32le", "--server", server.http)
    assert outcome.code == 1
    assert "is not a finite number" in outcome.err


def test_an_unreachable_server(cli: Cli, recording: Path) -> None:
    outcome = cli("transcribe", recording, "--raw", "pcm_f32le", "--server", "http://127.0.0.1:9")
    assert outcome.code == 1
    assert f"{recording}: http://127.0.0.1:9: cannot be reached" in outcome.err


@pytest.mark.parametrize("model", ["x/y", "tiny"])
def test_a_server_is_asked_for_the_model_that_is_given(cli: Cli, recording: Path, model: str) -> None:
    with serving(ScriptRunner()) as server:
        outcome = cli("transcribe", recording, "--raw", "pcm_f32le", "--server", server.http, "--model", model)
    assert outcome.code == 1
    assert f"unknown model '{model}': this server has " in outcome.err
