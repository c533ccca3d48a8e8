"""The built-in model and other recognisers: what is measured of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers
from slipstream.data.manifest import Recording
from slipstream.data.wave import write_wave


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    for number in range(2):
        write_wave(tmp_path / f"{number}.wav", np.zeros(peers.RATE * (number + 1), np.float32), peers.RATE)
    return [Recording(tmp_path / f"{number}.wav", "two words", lang="en", dataset="d") for number in range(2)]


def test_the_first_recording_warms_up_and_counts_once(recordings: list[Recording]) -> None:
    seen: list[Path] = []

    def recognise(recording: Recording) -> tuple[str, float, float]:
        seen.append(recording.audio)
        return "two birds", 0.5 if len(seen) > 1 else 100.0, 0.1

    result = peers.measure(recordings, recognise)
    assert seen == [recordings[0].audio, recordings[0].audio, recordings[1].audio]
    assert peers.times(result) == (
        "3.0 x real time; text 100 ms after the end of the audio (median), 100 ms (95th percentile)"
    )


def test_errors_are_reported_by_data_set(recordings: list[Recording], capsys: pytest.CaptureFixture[str]) -> None:
    peers.report("peer", recordings, lambda recording: ("two birds", 1.0, 1.0))
    assert "WER  50.0% (50.0% to 50.0%)" in capsys.readouterr().out


def test_a_stream_waits_for_its_delay_only(recordings: list[Recording]) -> None:
    text, worked, waited = peers._stream("tiny", "onnx", 1, "live")(recordings[1])
    assert text == ""
    assert 0 < waited < worked
