from __future__ import annotations

import gc
import io
import logging
import math
import sys
import threading
import time
import wave
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from tests.fakes import (
    ScriptRunner,
    drive,
    new_session,
    silence,
    sound_of,
    speech,
    tiny_tokenizer,
    tokenizer_path,
    words_of,
)
from tests.models import noise_and_tones, random_model, stt_config

import slipstream
from slipstream import errors
from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint
from slipstream.engine.live import LiveSession
from slipstream.engine.options import SessionOptions
from slipstream.engine.watchdog import WatchdogOptions
from slipstream.errors import AudioError, CheckpointError, Overloaded, SessionClosed, SlipstreamError
from slipstream.events import Final, PartialWord, Ready, Step, Word
from slipstream.hints import Hints
from slipstream.model.config import STTConfig
from slipstream.transcriber import Transcriber
from slipstream.transcript import Transcript


@pytest.fixture
def transcriber() -> Iterator[Transcriber]:
    with Transcriber(ScriptRunner(slots=3), tiny_tokenizer(), model="levels") as transcriber:
        yield transcriber


def solo(audio_S: np.ndarray) -> tuple[Word, ...]:
    runner = ScriptRunner()
    return tuple(words_of(drive(new_session(runner), runner, [audio_S])))


def quantised(audio_S: np.ndarray) -> np.ndarray:
    return np.round(audio_S * 32767).astype(np.int16)


def freeing(session: LiveSession, audio_S: np.ndarray) -> Iterator[np.ndarray]:
    """The audio, once `session` has given its slot back."""
    session.cancel()
    yield audio_S


def as_wav(path: Path, audio_S: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes(quantised(audio_S).tobytes())
    return path


# ---------------------------------------------------------------------------------------------------------- recordings


def test_an_array_becomes_a_transcript(transcriber: Transcriber) -> None:
    audio_S = np.concatenate([speech(1, words=6), silence(20), sound_of("fox", 5)])
    transcript = transcriber.transcribe(audio_S, 24_000)
    assert transcript.words == solo(audio_S)
    assert transcript.turns[0].start == transcript.words[0].start
    assert transcript.turns[-1].end == transcript.words[-1].end
    assert transcript.duration == len(audio_S) / 24_000
    assert (transcript.model, transcript.delay) == ("levels", 0.48)
    assert transcript.to_srt().startswith("1\n00:00:")


def test_a_file_is_transcribed_like_its_samples(transcriber: Transcriber, tmp_path: Path) -> None:
    audio_S = speech(2, words=6)
    from_file = transcriber.transcribe(as_wav(tmp_path / "speech.wav", audio_S))
    from_array = transcriber.transcribe(quantised(audio_S), 24_000)
    assert from_file == from_array
    assert [word.text for word in from_file.words] == [word.text for word in solo(audio_S)]


def test_a_file_object_and_bytes_are_read_as_the_file_is(transcriber: Transcriber, tmp_path: Path) -> None:
    path = as_wav(tmp_path / "speech.wav", speech(2, words=6))
    expected = transcriber.transcribe(path)
    assert expected.words
    data = path.read_bytes()
    assert all(transcriber.transcribe(form) == expected for form in (data, bytearray(data), memoryview(data)))
    assert transcriber.transcribe(io.BytesIO(data)) == expected
    with path.open("rb") as file:
        assert transcriber.transcribe(file) == expected


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.float64])
def test_every_entry_point_scales_samples_alike(transcriber: Transcriber, dtype: type) -> None:
    audio_S = quantised(speech(2, words=6))
    samples = audio_S / 32768 if dtype is np.float64 else audio_S.astype(dtype)
    words = transcriber.transcribe(audio_S, 24_000).words
    assert words
    assert transcriber.transcribe(samples, 24_000).words == words
    chunks = np.array_split(samples, 9)
    assert tuple(words_of(list(transcriber.stream(chunks, 24_000)))) == words
    with transcriber.session() as session:
        session.feed(chunks)
        assert tuple(words_of(list(session))) == words


def test_int32_samples_at_full_scale(transcriber: Transcriber) -> None:
    audio_S = speech(2, words=6)
    wide = (audio_S.astype(np.float64) * (1 << 31)).astype(np.int32)
    assert transcriber.transcribe(wide, 24_000).text == transcriber.transcribe(audio_S, 24_000).text != ""


@pytest.mark.parametrize("rate", ["24000", 0, -1, math.nan, True])
def test_an_invalid_sample_rate(transcriber: Transcriber, rate: Any) -> None:
    with pytest.raises(AudioError, match="expected a whole number of Hz"):
        transcriber.transcribe(silence(5), rate)
    with pytest.raises(AudioError, match="expected a whole number of Hz"):
        transcriber.stream([silence(5)], rate)
    assert transcriber.engine.active == 0


@pytest.mark.parametrize("one", ["a.wav", Path("a.wav"), b"RIFF", io.BytesIO(b"RIFF"), silence(5)])
def test_one_recording_where_several_are_expected(transcriber: Transcriber, one: Any) -> None:
    with pytest.raises(AudioError, match=r"transcribe_many takes several recordings, not one .*: pass a list of them"):
        transcriber.transcribe_many(one)
    with pytest.raises(AudioError, match="stream takes an iterable of arrays, not one"):
        transcriber.stream(one, 24_000)


def test_channels_are_mixed_and_rates_converted(transcriber: Transcriber) -> None:
    audio_S = np.concatenate([silence(5), sound_of("fox", 10), silence(5), sound_of("dog", 10)])
    other_rate = np.repeat(audio_S, 2)
    stereo = np.stack([2 * other_rate, 0 * other_rate])
    transcript = transcriber.transcribe(stereo, 48_000)
    assert [(word.text, word.start) for word in transcript.words] == [("fox", 0.4), ("dog", 1.6)]
    assert transcript.duration == pytest.approx(len(audio_S) / 24_000, abs=0.001)


def test_a_recording_longer_than_the_buffer(transcriber: Transcriber) -> None:
    audio_S = np.tile(np.concatenate([sound_of("fox", 5), silence(20)]), 30)
    transcript = transcriber.transcribe(audio_S, 24_000, options=SessionOptions(partials=False, max_buffered_seconds=2))
    assert [(word.text, word.start) for word in transcript.words] == [("fox", pytest.approx(2 * n)) for n in range(30)]
    assert len(transcript.turns) == 30


def test_an_invalid_source_is_an_error(transcriber: Transcriber, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("this is no audio")
    for source, rate, message in (
        (tmp_path / "absent.wav", None, "no such file"),
        (tmp_path / "text.wav", None, "not audio"),
        (tmp_path / "text.wav", 16_000, "its own sample rate"),
        (silence(5), None, "pass sample_rate"),
        (np.array([0.0, np.nan]), 24_000, "0.000 s is nan, not a finite number"),
        (b"", None, "not audio|empty"),
        (b"this is no audio", None, "not audio"),
        (io.BytesIO(b"this is no audio"), None, "not audio"),
        (io.StringIO("this is no audio"), None, "open it in mode 'rb'"),
        (b"RIFF", 24_000, "a file has its own sample rate"),
    ):
        with pytest.raises(AudioError, match=message):
            transcriber.transcribe(source, rate)
    assert transcriber.engine.active == 0


def test_a_recovery_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    options = SessionOptions(partials=False, watchdog=WatchdogOptions(mute_seconds=3))
    with (
        Transcriber(ScriptRunner(mute_after=20), tiny_tokenizer(), model="mute") as transcriber,
        caplog.at_level(logging.WARNING),
    ):
        transcriber.transcribe(np.tile(np.concatenate([sound_of("fox", 10), silence(5)]), 10), 24_000, options=options)
    assert "no text for 3 s of speech at" in caplog.text


# ----------------------------------------------------------------------------------------------------------------- many


def test_many_recordings_fill_the_slots_and_come_in_order(transcriber: Transcriber) -> None:
    recordings = [speech(seed, words=4 + seed % 3) for seed in range(10)]
    transcripts = list(transcriber.transcribe_many(recordings, 24_000))
    assert [transcript.words for transcript in transcripts] == [solo(audio_S) for audio_S in recordings]


def test_a_failed_recording_raises_or_takes_its_place_in_the_results(transcriber: Transcriber, tmp_path: Path) -> None:
    sources = [as_wav(tmp_path / f"{n}.wav", speech(n, words=2)) for n in range(4)]
    sources[2].write_bytes(b"broken")
    transcripts = transcriber.transcribe_many(sources)
    next(transcripts), next(transcripts)
    with pytest.raises(AudioError, match=r"2\.wav"):
        next(transcripts)
    found = list(transcriber.transcribe_many(sources, return_exceptions=True))
    assert [isinstance(each, SlipstreamError) for each in found] == [False, False, True, False]
    assert all(isinstance(each, (Transcript, AudioError)) for each in found)


def test_closing_the_iterator_of_transcripts_does_not_wait() -> None:
    runner = ScriptRunner(slots=2, step_seconds=0.005)
    with Transcriber(runner, tiny_tokenizer(), model="slow") as transcriber:
        transcripts = transcriber.transcribe_many([speech(seed, words=2) for seed in range(50)], 24_000)
        next(transcripts)
        transcripts.close()  # type: ignore[attr-defined]
        assert runner.steps < 1000


# -------------------------------------------------------------------------------------------------------------- streams


def test_a_stream_yields_words_as_they_come(transcriber: Transcriber) -> None:
    audio_S = speech(3, words=5)
    fed = 0

    def chunks() -> Iterator[np.ndarray]:
        nonlocal fed
        for chunk in np.array_split(audio_S, 40):
            fed += 1
            time.sleep(0.005)
            yield chunk

    words = {}
    for event in transcriber.stream(chunks(), 24_000):
        if isinstance(event, Word):
            words[event] = fed
    assert tuple(words) == solo(audio_S)
    assert min(words.values()) < 40


def test_a_stream_yields_the_events_of_its_options(transcriber: Transcriber) -> None:
    by_default = {type(event) for event in transcriber.stream([speech(3, words=5)], 24_000)}
    assert PartialWord in by_default
    assert Step not in by_default
    options = SessionOptions(partials=False, steps=True)
    asked = {type(event) for event in transcriber.stream([speech(3, words=5)], 24_000, options=options)}
    assert Step in asked
    assert PartialWord not in asked


def test_closing_a_stream_frees_its_slot(transcriber: Transcriber) -> None:
    events = transcriber.stream([silence(1)] * 100, 24_000)
    next(events)
    assert transcriber.engine.active == 1
    events.close()  # type: ignore[attr-defined]
    assert transcriber.engine.active == 0


def test_a_stream_that_waits_for_a_slot_logs_a_warning(
    transcriber: Transcriber, caplog: pytest.LogCaptureFixture
) -> None:
    held = [transcriber.session() for _ in range(transcriber.slots)]
    events = transcriber.stream(freeing(held[0], speech(1, words=2)), 24_000)
    with caplog.at_level(logging.WARNING, "slipstream"):
        assert tuple(words_of(list(events))) == solo(speech(1, words=2))
    assert "all 3 slots are in use" in caplog.text
    for session in held:
        session.cancel()


def test_a_closed_transcriber_refuses_sessions(transcriber: Transcriber) -> None:
    transcriber.close()
    with pytest.raises(SessionClosed, match="is closed"):
        transcriber.session()


def test_sessions_share_the_engine_and_its_slots_are_limited(transcriber: Transcriber) -> None:
    sessions = [transcriber.session() for _ in range(3)]
    with pytest.raises(Overloaded):
        transcriber.session()
    for number, session in enumerate(sessions):
        session.send(speech(number, words=3))
    for number, session in enumerate(sessions):
        session.finish()
        events = list(session)
        assert (type(events[0]), type(events[-1])) == (Ready, Final)
        assert tuple(words_of(events)) == solo(speech(number, words=3))


# ------------------------------------------------------------------------------------------------------------ sessions


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.array([0.0, np.nan], np.float32), "0.080 s is nan"),
        (np.array(["a"]), "expected floats"),
        (np.zeros((2, 100)), "one channel"),
        (np.array([3000.0]), "divide 16-bit values"),
    ],
)
@pytest.mark.parametrize("feed", [False, True])
def test_a_reader_in_another_thread_gets_the_error_of_its_sender(
    transcriber: Transcriber, chunk: np.ndarray, message: str, feed: bool
) -> None:
    def send(session: LiveSession) -> None:
        if not feed:
            session.send(silence(1))
        with pytest.raises(AudioError, match=message):
            session.feed([silence(1), chunk, silence(1)]) if feed else session.send(chunk)

    with transcriber.session() as session:
        sender = threading.Thread(target=send, args=(session,))
        sender.start()
        with pytest.raises(AudioError, match=message):
            list(session)
        sender.join()
    assert transcriber.engine.active == 0


def test_a_reader_gets_the_error_of_the_chunks(transcriber: Transcriber) -> None:
    def chunks() -> Iterator[np.ndarray]:
        yield silence(1)
        raise OSError("the disk is gone")

    with transcriber.session() as session:
        with pytest.raises(OSError, match="the disk is gone"):
            session.feed(chunks())
        with pytest.raises(OSError, match="the disk is gone"):
            list(session)


# ------------------------------------------------------------------------------------------------------------- garbage


def dropped(transcriber: Transcriber) -> tuple[threading.Thread, weakref.ref[ScriptRunner]]:
    """What a transcriber that is no longer referenced must free: its engine's thread, its model."""
    return transcriber.engine._thread, weakref.ref(transcriber.engine._runner)  # type: ignore[arg-type]


def test_a_dropped_transcriber_frees_its_engine_and_its_thread() -> None:
    thread, runner = dropped(Transcriber(ScriptRunner(), tiny_tokenizer(), model="levels"))
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    gc.collect()
    assert runner() is None


def test_a_session_outlives_the_transcriber_that_opened_it() -> None:
    transcriber = Transcriber(ScriptRunner(), tiny_tokenizer(), model="levels")
    thread, runner = dropped(transcriber)
    session = transcriber.session()
    del transcriber
    gc.collect()
    session.feed([speech(1, words=3)])
    assert tuple(words_of(list(session))) == solo(speech(1, words=3))
    thread.join(10)
    assert not thread.is_alive()
    del session
    gc.collect()
    assert runner() is None


# ------------------------------------------------------------------------------------------------------------- by name


def test_every_public_name_is_there() -> None:
    assert set(slipstream.__all__) == slipstream._MODULE_OF.keys() < set(dir(slipstream))
    for name in slipstream.__all__:
        assert getattr(slipstream, name) is getattr(sys.modules[slipstream._MODULE_OF[name]], name)


def test_events_and_errors_are_public() -> None:
    assert {event.__name__ for event in get_args(slipstream.Event)} <= set(slipstream.__all__)
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined <= set(slipstream.__all__)


def save_model(folder: Path, config: STTConfig) -> Path:
    lm, codec = random_model(config)
    save_checkpoint(Checkpoint(config, lm, codec, tokenizer_path()), folder, "kyutai")
    return folder


def test_load_makes_a_transcriber_of_a_folder(tmp_path: Path) -> None:
    config = stt_config().model_copy(update={"silence_prefix_seconds": 0.3})
    with slipstream.load(save_model(tmp_path, config), backend="onnx", slots=2) as transcriber:
        transcript = transcriber.transcribe(speech(1, words=3), 24_000)
    assert transcriber.slots == 2
    assert transcriber.engine.format.silence_frames == math.ceil(0.3 * 12.5)
    assert transcript.model == str(tmp_path)
    assert transcript.delay == config.delay_frames / 12.5


@pytest.fixture
def searching(tmp_path: Path) -> Path:
    """A model whose configuration sets a beam of 2."""
    return save_model(tmp_path, stt_config(text_vocab=tiny_tokenizer().vocab_size).model_copy(update={"beam": 2}))


def test_recordings_have_the_beam_of_the_model_and_streams_have_one_hypothesis(searching: Path) -> None:
    audio_S = noise_and_tones(3.0, seed=4)
    with slipstream.load(searching, backend="onnx", slots=2) as transcriber:
        assert (transcriber.slots, transcriber.beam) == (4, 2)
        greedy = tuple(event for event in transcriber.stream([audio_S], 24_000) if isinstance(event, Word))
        one, two = (transcriber.transcribe(audio_S, 24_000, hints=Hints(beam=beam)).words for beam in (1, 2))
        assert one == greedy != two
        assert transcriber.transcribe(audio_S, 24_000).words == two
        assert transcriber.transcribe(audio_S, 24_000, hints=Hints(languages=["de"])).text == " ".join(
            word.text for word in two
        )
        options = SessionOptions(hints=Hints(beam=1))
        assert transcriber.transcribe(audio_S, 24_000, options=options).words == greedy
        assert [each.words for each in transcriber.transcribe_many([audio_S] * 3, 24_000)] == [two] * 3
    with slipstream.load(searching, backend="onnx", beam=1) as transcriber:
        assert transcriber.slots == 1
        words = transcriber.transcribe(audio_S, 24_000).words  # one row: the last bits of its confidences are others
        assert [(word.text, word.start, word.end) for word in words] == [(w.text, w.start, w.end) for w in greedy]


def test_a_recording_has_the_beam_of_the_model_while_a_stream_is_open(searching: Path) -> None:
    with slipstream.load(searching, backend="onnx", slots=2) as transcriber, transcriber.session():
        assert transcriber.transcribe(noise_and_tones(1.0, seed=4), 24_000).duration == pytest.approx(1.0)


def test_the_default_beam_is_not_larger_than_the_number_of_slots() -> None:
    with Transcriber(ScriptRunner(slots=1), tiny_tokenizer(), model="levels", beam=2) as transcriber:
        assert transcriber.transcribe(speech(1, words=3), 24_000).words == solo(speech(1, words=3))


def test_load_refuses_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = save_model(tmp_path, stt_config(text_vocab=tiny_tokenizer().vocab_size + 1))
    with pytest.raises(CheckpointError, match="the tokenizer belongs to another model"):
        slipstream.load(folder)
