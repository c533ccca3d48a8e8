"""Whisper as a teacher, with a stand-in for faster-whisper."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from slipstream.data.manifest import Recording
from slipstream.data.wave import write_wave
from slipstream.data.whisper import Whisper
from slipstream.errors import BackendError, CheckpointError, SlipstreamError

HEARD = [(" Guten", 0.1, 0.4, 0.9), (" Tag.", 0.5, 0.8, 0.7)]


LANGUAGES: list[str] = []


class _Model:
    def __init__(self, name: str, device: str, compute_type: str) -> None:
        if name == "missing":
            raise ValueError("Invalid model size 'missing'")

    def transcribe(self, samples: np.ndarray, language: str, **options: object) -> tuple[list[object], object]:
        if language == "xx":
            raise ValueError("'xx' is not a valid language code")
        assert options["word_timestamps"]
        LANGUAGES.append(language)
        words = [SimpleNamespace(word=w, start=a, end=b, probability=p) for w, a, b, p in HEARD]
        return [SimpleNamespace(words=words if samples.any() else None)], None


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recording:
    module = ModuleType("faster_whisper")
    module.WhisperModel = _Model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "faster_whisper", module)
    write_wave(tmp_path / "a.wav", np.full(24_000, 0.1, np.float32))
    return Recording(tmp_path / "a.wav", "", lang="de-AT", extra={"licence": "CC0"})


def test_a_text_with_times_and_confidence(recording: Recording) -> None:
    found = Whisper("base").transcribe(recording)
    assert found.text == "Guten Tag."
    assert [(word.text, word.start) for word in found.words] == [("Guten", 0.1), ("Tag.", 0.5)]
    assert found.extra == {"licence": "CC0", "confidence": 0.8}
    assert LANGUAGES[-1] == "de"


def test_silence_has_no_text(recording: Recording) -> None:
    write_wave(recording.audio, np.zeros(24_000, np.float32))
    assert Whisper("base").transcribe(recording).text == ""


def test_times_of_a_text_that_is_known(recording: Recording) -> None:
    known = Recording(recording.audio, "guten, Tag", lang="de")
    found, shared = Whisper("base").align(known)
    assert [(word.text, word.start) for word in found.words] == [("guten,", 0.1), ("Tag", 0.5)]
    assert shared == 1.0
    with pytest.raises(SlipstreamError, match="only 0% of the text"):
        Whisper("base").align(Recording(recording.audio, "etwas anderes", lang="de"))


def test_a_model_language_or_package_that_cannot_be_used_is_named(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="missing: faster-whisper cannot load it"):
        Whisper("missing")
    with pytest.raises(SlipstreamError, match="'xx' is not a valid language code"):
        Whisper("base").transcribe(Recording(recording.audio, "", lang="xx"))
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(BackendError, match=r"pip install .slipstream-stt\[whisper\]"):
        Whisper("base")
