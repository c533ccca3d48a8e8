"""Microphones, with a stand-in for sounddevice."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.audio.sounds import tones

from slipstream import audio
from slipstream.errors import AudioError


class FakePortAudioError(Exception):
    pass


def fake_sounddevice(devices: list[dict[str, Any]]) -> SimpleNamespace:
    class InputStream:
        def __init__(self, samplerate: int, blocksize: int, callback: Any, **_: Any) -> None:
            self.blocks = np.split(tones(1.0, samplerate).T, samplerate // blocksize)
            self.callback = callback

        def __enter__(self) -> None:
            for block in self.blocks:
                self.callback(block, len(block), None, SimpleNamespace(input_overflow=False))

        def __exit__(self, *_: object) -> None:
            pass

    def query_devices(device: Any = None, kind: str | None = None) -> Any:
        if kind is None:
            return devices
        if not devices:
            raise FakePortAudioError("Error querying device -1")
        return devices[0]

    return SimpleNamespace(
        default=SimpleNamespace(device=(0, 1)),
        query_devices=query_devices,
        InputStream=InputStream,
        PortAudioError=FakePortAudioError,
    )


MICROPHONE = {"index": 0, "name": "Built-in", "max_input_channels": 2, "default_samplerate": 48_000.0}
LOUDSPEAKER = {"index": 1, "name": "Speaker", "max_input_channels": 0, "default_samplerate": 48_000.0}


def test_microphones_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice([MICROPHONE, LOUDSPEAKER]))
    assert audio.input_devices() == [audio.InputDevice(0, "Built-in", 2, 48_000, is_default=True)]


def test_microphone_is_a_stream_at_the_models_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice([MICROPHONE]))
    recording = audio.microphone()
    samples = np.concatenate([next(recording) for _ in range(25)], axis=1)
    recording.close()
    np.testing.assert_allclose(samples[:, 2400:12_000], tones(1.0, 24_000)[:, 2400:12_000], atol=1e-3)


def test_no_microphone_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice([]))
    with pytest.raises(AudioError, match="no microphone"):
        next(audio.microphone())


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(AudioError, match=r"slipstream-stt\[mic\]"):
        audio.input_devices()
