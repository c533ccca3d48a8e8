"""Models with another lookahead for recordings: which lookahead transcribes what, by the mode they are loaded in."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import ScriptRunner, speech, tiny_tokenizer, tokenizer_path, words_of
from tests.models import noise_and_tones, random_model, stt_config, whisper_codec_config

import slipstream
from slipstream.arrays import FloatArray
from slipstream.bundle import ModelBundle
from slipstream.checkpoints.checkpoint import Checkpoint, convert, save_checkpoint
from slipstream.engine.options import SessionOptions
from slipstream.errors import ConfigError, SessionClosed
from slipstream.hints import Hints
from slipstream.model.config import RecordingsConfig, STTConfig
from slipstream.transcriber import Transcriber
from slipstream.transcript import Transcript

BACKENDS = ["onnx", "torch"]
PLAIN = SessionOptions(partials=False, hints=Hints(beam=1))
AUDIO = noise_and_tones(6.0)
RECORDINGS = RecordingsConfig(lookahead=40, delay_frames=35)
"""Of three layers: 30 frames. The text then lags by five frames, as in live streams."""


def saved(config: STTConfig, folder: Path) -> Path:
    save_checkpoint(Checkpoint(config, *random_model(config), tokenizer_path()), folder, "kyutai")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model with both lookaheads, and models with the same weights and one of them."""
    folder = tmp_path_factory.mktemp("models")
    live = stt_config(codec="whisper", decoder=True).model_copy(update={"delay_frames": 8, "delay_seconds": 0.64})
    wide = {"codec": whisper_codec_config(RECORDINGS.lookahead), "delay_frames": 35, "delay_seconds": 2.8}
    configs = {
        "live": live,
        "recordings": live.model_copy(update=wide),
        "both": live.model_copy(update={"recordings": RECORDINGS}),
    }
    return {name: saved(config, folder / name) for name, config in configs.items()}


def load(model: Path, backend: str, **options: object) -> Transcriber:
    if backend == "torch":
        pytest.importorskip("torch", reason="pip install 'slipstream-stt[torch]'")
    return slipstream.load(model, backend=backend, device="cpu", **options)  # type: ignore[arg-type]


def streamed(transcriber: Transcriber) -> list[slipstream.Word]:
    return words_of(list(transcriber.stream([AUDIO], 24_000, options=PLAIN)))


def recorded(transcriber: Transcriber) -> Transcript:
    return transcriber.transcribe(AUDIO, 24_000, options=PLAIN)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_mode_has_the_words_of_a_model_with_its_lookahead(models: dict[str, Path], backend: str) -> None:
    expected = {}
    for name in ("live", "recordings"):
        with load(models[name], backend) as transcriber:
            expected[name] = recorded(transcriber)
            assert list(expected[name].words) == streamed(transcriber)
    live, recordings = expected["live"], expected["recordings"]
    assert len(live.words) > 3
    assert [word.text for word in live.words] != [word.text for word in recordings.words]
    for mode in ("live", "recordings"):
        with load(models["both"], backend, mode=mode) as transcriber:
            assert recorded(transcriber).words == expected[mode].words
            assert list(expected[mode].words) == streamed(transcriber)
            assert transcriber.delay == recorded(transcriber).delay == expected[mode].delay
    with load(models["both"], backend) as transcriber:
        assert streamed(transcriber) == list(live.words)
        found = recorded(transcriber)
        assert (found.words, found.delay) == (recordings.words, 2.8)
        assert list(transcriber.transcribe_many([AUDIO], 24_000)) == [transcriber.transcribe(AUDIO, 24_000)]
        assert streamed(transcriber) == list(live.words)
        assert (transcriber.delay, transcriber.engine.format.delay_frames) == (0.64, 8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_of_the_wide_runner_are_those_of_the_edited_model(models: dict[str, Path], backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch", reason="pip install 'slipstream-stt[torch]'")

    def tokens(bundle: ModelBundle) -> list[tuple[int, float]]:
        runner = bundle.open(backend=backend, device="cpu")
        frames = AUDIO.reshape(-1, 1, 1920)
        steps = [runner.step(frame, np.ones(1, np.bool_)) for frame in frames]
        return [(int(step.token_B[0]), float(step.logprob_B[0])) for step in steps]

    both, recordings = (ModelBundle.resolve(models[name]) for name in ("both", "recordings"))
    assert tokens(both.for_recordings()) == tokens(recordings) != tokens(both)


def test_a_model_without_the_key_is_the_same_in_all_modes(models: dict[str, Path]) -> None:
    for mode in ("auto", "live", "recordings"):
        with load(models["live"], "onnx", mode=mode) as transcriber:
            recorded(transcriber)
            assert engine_threads() == 1


def test_an_unknown_mode_is_named(models: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="mode='fast': expected auto, live, recordings"):
        load(models["both"], "onnx", mode="fast")


@pytest.mark.parametrize("options", [{}, {"quantize": 6}, {"dtype": "bfloat16"}])
def test_a_converted_model_keeps_the_key(models: dict[str, Path], tmp_path: Path, options: dict[str, object]) -> None:
    convert(models["both"], tmp_path / "out", "kyutai", **options)  # type: ignore[arg-type]
    assert ModelBundle.resolve(tmp_path / "out").config.recordings == RECORDINGS


# ------------------------------------------------------------------------------------------------- the second runner


def engine_threads() -> int:
    return sum(thread.name == "slipstream-engine" for thread in threading.enumerate())


class Opening:
    """Opens a runner of another delay, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> ScriptRunner:
        self.count += 1
        time.sleep(0.1)  # so that the second of two threads comes in the meantime
        return ScriptRunner(slots=2, delay_frames=20)


@pytest.fixture
def opening() -> Opening:
    return Opening()


@pytest.fixture
def new(opening: Opening) -> Iterator[Callable[[], Transcriber]]:
    def make() -> Transcriber:
        return Transcriber(ScriptRunner(slots=2), tiny_tokenizer(), model="m", open_recordings=opening)

    before = engine_threads()
    yield make
    gc.collect()
    deadline = time.monotonic() + 5
    while engine_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine_threads() == before, "an engine is left"


def spoken() -> FloatArray:
    return speech(1, words=5)


def test_the_second_runner_is_opened_once_at_the_first_recording(
    new: Callable[[], Transcriber], opening: Opening
) -> None:
    with new() as transcriber:
        live = words_of(list(transcriber.stream([spoken()], 24_000)))
        assert opening.count == 0
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda _: transcriber.transcribe(spoken(), 24_000), range(2)))
        assert opening.count == 1
        assert both[0] == both[1]
        assert [(word.text, word.start) for word in both[0].words] == [(word.text, word.start) for word in live]
        assert (both[0].delay, transcriber.delay) == (1.6, 0.48)
        assert transcriber.slots == 2


def test_a_runner_that_cannot_be_opened_is_tried_again(opening: Opening) -> None:
    def fail() -> ScriptRunner:
        if opening.count == 0:
            opening()
            raise ConfigError("no memory")
        return opening()

    with Transcriber(ScriptRunner(slots=2), tiny_tokenizer(), model="m", open_recordings=fail) as transcriber:
        with pytest.raises(ConfigError, match="no memory"):
            transcriber.transcribe(spoken(), 24_000)
        assert transcriber.transcribe(spoken(), 24_000).delay == 1.6


@pytest.mark.parametrize("used", [False, True])
def test_close_stops_both(new: Callable[[], Transcriber], opening: Opening, used: bool) -> None:
    transcriber = new()
    if used:
        transcriber.transcribe(spoken(), 24_000)
    transcriber.close()
    with pytest.raises(SessionClosed):
        transcriber.transcribe(spoken(), 24_000)
    assert opening.count == used


def test_close_waits_for_a_runner_that_is_being_opened_and_stops_it(
    new: Callable[[], Transcriber], opening: Opening
) -> None:
    transcriber = new()
    with ThreadPoolExecutor(1) as pool:
        recording = pool.submit(transcriber.transcribe, speech(1, words=1000), 24_000)
        while opening.count == 0:
            time.sleep(0.001)
        transcriber.close()
        with pytest.raises(SessionClosed):
            recording.result(timeout=5)
    # The fixture waits for the threads.


def test_both_stop_when_the_transcriber_is_no_longer_referenced(new: Callable[[], Transcriber]) -> None:
    new().transcribe(spoken(), 24_000)  # the fixture waits for the threads
