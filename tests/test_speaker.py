"""`load_speaker`, `say` and voices, on a small model."""

from __future__ import annotations

import itertools
import math
import threading
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.models import noise_and_tones
from tests.speaking import continuing_config, save_model

import slipstream
from slipstream.checkpoints.tensors import write_tensors
from slipstream.data.wave import write_wave
from slipstream.engine.reading import SpeechOptions
from slipstream.engine.speech import SpeechEngine
from slipstream.errors import AudioError, CheckpointError, ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def speaker(folder: Path):
    with slipstream.load_speaker(folder, voices=folder, device="cpu", slots=2) as speaker:
        yield speaker


def test_speech_has_audio_and_words(speaker: slipstream.Speaker, tmp_path: Path) -> None:
    speech = speaker.say("the fox", voice="ann")  # style: allow
    assert [word.text for word in speech.words] == ["the", "fox"]
    assert speech.words[0].end == speech.words[1].start
    assert speech.samples.dtype == np.float32
    assert np.abs(speech.samples).max() > 0
    speech.save(tmp_path / "out.wav")
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert (file.getframerate(), file.getnframes()) == (24_000, len(speech.samples))


def test_a_session_streams_the_same_speech(speaker: slipstream.Speaker) -> None:
    whole = speaker.say("the fox", voice=["ann", "bob"])  # style: allow
    with speaker.open(voice=["ann", "bob"]) as session:
        for character in "the fox":
            session.feed(character)
        session.end()
        frames = [event.samples for event in session if not isinstance(event, slipstream.Word)]
    np.testing.assert_allclose(np.concatenate(frames), whole.samples, atol=1e-4)


def test_a_text_is_played_while_it_is_written(speaker: slipstream.Speaker) -> None:
    frames: list[np.ndarray] = []
    playback = speaker.play(iter(["the ", "f", "ox"]), frames.append, voice="ann")
    playback.wait()
    whole = speaker.say("the fox", voice="ann")  # style: allow
    np.testing.assert_allclose(np.concatenate(frames), whole.samples, atol=1e-4)
    assert playback.stop() == "the fox"


def test_playback_stops_within_a_frame_and_returns_what_was_spoken(speaker: slipstream.Speaker) -> None:
    started, stopped = threading.Event(), threading.Event()
    frames: list[int] = []

    def play(samples: np.ndarray) -> None:
        frames.append(len(samples))
        started.set()
        assert stopped.wait(60)

    playback = speaker.play(itertools.repeat("the fox "), play)  # a text without end
    assert started.wait(60)
    spoken = playback.stop()
    stopped.set()
    playback.wait()
    assert frames == [1920]
    assert len(spoken.split()) < 5
    assert speaker.engine.active == 0


def test_errors_of_the_text_and_of_the_device_end_the_playback(speaker: slipstream.Speaker) -> None:
    def broken() -> Iterator[str]:
        yield "the fox "
        raise ConnectionError("the language model does not answer")

    def unplugged(samples: np.ndarray) -> None:
        raise OSError("no device")

    with pytest.raises(ConnectionError, match="does not answer"):
        speaker.play(broken(), lambda samples: None).wait()
    with pytest.raises(OSError, match="no device"):
        speaker.play(["the fox"], unplugged).wait()
    assert speaker.engine.active == 0


def test_names_of_voices(speaker: slipstream.Speaker, folder: Path, tmp_path: Path) -> None:
    assert speaker.voice("ann") is speaker.voice("ann")
    path = folder / "ann.5117e570@1.safetensors"
    assert np.array_equal(speaker.voice(path).embeddings[0], speaker.voice("ann").embeddings[0])
    with pytest.raises(CheckpointError, match=r"carl\.5117e570@1\.safetensors: no such file"):
        speaker.voice("carl")
    (tmp_path / "voice.wav").write_bytes(b"RIFF")
    with pytest.raises(CheckpointError, match=r"expected a \.safetensors file"):
        speaker.voice(tmp_path / "voice.wav")
    with pytest.raises(CheckpointError, match="has no tensor speaker_wavs"):
        speaker.voice(folder / "mimi.safetensors")
    write_tensors(tmp_path / "nan.safetensors", {"speaker_wavs": np.full((1, 8, 6), np.nan, np.float32)})
    with pytest.raises(CheckpointError, match=r"nan\.safetensors: .* not finite"):
        speaker.voice(tmp_path / "nan.safetensors")
    with pytest.raises(ConfigError, match="voice has no names"):
        speaker.say("fox", voice=[])  # style: allow


def test_a_text_is_read_to_its_end(speaker: slipstream.Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[SpeechOptions] = []

    def open_(voice: None, options: SpeechOptions, **more: object):
        opened.append(options)
        return SpeechEngine.open(speaker.engine, voice, options, **more)

    monkeypatch.setattr(speaker.engine, "open", open_)
    speaker.say("fox")  # style: allow
    assert opened[0] == SpeechOptions(max_seconds=math.inf)
    cut = speaker.say("the quick brown fox jumps", options=SpeechOptions(max_seconds=0.4))  # style: allow
    assert len(cut.samples) == 5 * 1920


def test_a_model_that_continues_a_recording(tmp_path: Path) -> None:
    save_model(tmp_path, continuing_config())
    write_wave(tmp_path / "me.wav", noise_and_tones(0.5), 24_000)
    with slipstream.load_speaker(tmp_path, voices=tmp_path, device="cpu", guidance=1.5) as speaker:
        assert speaker.voice("me.wav").prefix_frames == 5
        speech = speaker.say("fox", voice="me.wav")
        with pytest.raises(ConfigError, match="has one voice"):
            speaker.voice(["me.wav", "me.wav"])
        write_wave(tmp_path / "brief.wav", noise_and_tones(0.1), 24_000)
        with pytest.raises(AudioError, match=r"brief\.wav is too short for a voice: .* at least 0\.24 s"):
            speaker.voice("brief.wav")
    assert [word.text for word in speech.words] == ["fox"]
    assert 0 <= speech.words[0].start < len(speech.samples) / 24_000


def test_settings_that_cannot_be(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"guidance=7: this model takes 1\.0, 2\.0"):
        slipstream.load_speaker(folder, device="cpu", guidance=7)
    with pytest.raises(ConfigError, match="expected auto, float32 or bfloat16"):
        slipstream.load_speaker(folder, device="cpu", dtype="float16")
    with pytest.raises(ConfigError, match=r"without audio output .*slipstream\.load"):
        slipstream.load_speaker("tiny", device="cpu")
