"""Audio that waits is encoded ahead, in one process and in several: no bit of the model's outputs changes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.engine.remote.harness import hosting, wait_for
from tests.engine.remote.test_remote import events_of
from tests.engine.test_encode_ahead import MOST, AheadRunner
from tests.fakes import ScriptRunner, sound_of, speech, tiny_tokenizer, words_of
from tests.models import noise_and_tones, random_model, stt_config

from slipstream.arrays import BoolArray, FloatArray
from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.engine.engine import MAX_SESSIONS_AHEAD, Engine
from slipstream.engine.live import AnyEngine
from slipstream.engine.options import SessionOptions
from slipstream.hints import Hints
from slipstream.model.runner import Steering, StepOutput

Output = tuple[int, int, bytes, bytes]


class Recorder(OnnxRunner):
    """A model that keeps the outputs of its steps, and the number of blocks that were encoded ahead."""

    def record(self, max_ahead: int) -> None:
        self.max_ahead, self.blocks, self.outputs = max_ahead, 0, list[Output]()

    def encode(self, slots: Sequence[int], pcm_FS: FloatArray) -> None:
        self.blocks += 1
        super().encode(slots, pcm_FS)

    def step(self, pcm_BS: FloatArray, active_B: BoolArray, steering: Steering | None = None) -> StepOutput:
        out = super().step(pcm_BS, active_B, steering)
        for slot in np.flatnonzero(active_B).tolist():
            token, logprob = int(out.token_B[slot]), out.logprob_B[slot].tobytes()
            self.outputs.append((slot, token, logprob, out.pause_BH[slot].tobytes()))
        return out


@cache
def recorder() -> Recorder:
    config = stt_config(codec="whisper", decoder=True, vectors=2, text_vocab=tiny_tokenizer().vocab_size)
    return Recorder(config, *random_model(config), slots=2, threads=1)


def play(engine: AnyEngine, chunks: list[tuple[int, bool]], hints: Hints) -> None:
    """Send chunks of these numbers of samples, some of them with a flush after them, and wait for the end."""
    audio_S = noise_and_tones(sum(samples for samples, _ in chunks) / 24_000 + 0.1)
    with engine.open(SessionOptions(hints=hints)) as session:
        for samples, flush in chunks:
            session.send(audio_S[:samples])
            audio_S = audio_S[samples:]
            if flush:
                session.flush()
        session.finish()
        list(session)


@example(chunks=[(40_000, True), (30_000, False)], beam=2)
@given(
    chunks=st.lists(st.tuples(st.integers(1, 30_000), st.booleans()), min_size=1, max_size=4), beam=st.integers(1, 2)
)
@settings(max_examples=10, deadline=None)
def test_tokens_and_probabilities_are_those_of_single_frames_bit_for_bit(
    chunks: list[tuple[int, bool]], beam: int
) -> None:
    runner, hints = recorder(), Hints(beam=beam)
    runner.record(max_ahead=0)
    with Engine(runner, tiny_tokenizer()) as engine:
        play(engine, chunks, hints)
    expected = runner.outputs
    runner.record(max_ahead=8)
    with Engine(runner, tiny_tokenizer()) as engine:
        play(engine, chunks, hints)
    assert runner.outputs == expected
    assert runner.blocks > 0
    runner.record(max_ahead=8)
    with hosting(runner) as hosted, hosted.worker() as remote:
        play(remote, chunks, hints)
        assert not hosted.failures
    assert runner.outputs == expected
    assert runner.blocks > 0


def test_events_are_those_of_an_engine_that_encodes_nothing_ahead() -> None:
    options = SessionOptions(low_latency=True)
    with Engine(ScriptRunner(), tiny_tokenizer()) as engine:
        expected = [events_of(engine, 3, one) for one in (SessionOptions(), options)]
    runner = AheadRunner()
    with hosting(runner) as hosted, hosted.worker() as remote:
        assert [events_of(remote, 3, one, wait=10.0) for one in (SessionOptions(), options)] == expected
    assert MOST in runner.blocks


def test_a_stream_that_restarts_or_ends_leaves_no_encoded_frames() -> None:
    runner = AheadRunner()
    with hosting(runner) as hosted, hosted.worker() as remote:
        for number in range(6):
            with remote.open(wait=10.0) as session:
                session.send(speech(number, words=12))
                if number % 2:  # the next stream gets the slot while frames are encoded
                    wait_for(lambda: session.clock > 0.5)
                    continue
                for _ in range(3):
                    session.restart()
                    session.send(speech(number, words=12))
                session.restart()
                session.send(sound_of("fox", frames=9))
                session.finish()
                assert words_of(session)[-1].text == "fox"
        assert not hosted.failures
    assert MOST in runner.blocks


def test_a_step_of_many_sessions_encodes_nothing_ahead() -> None:
    slots = MAX_SESSIONS_AHEAD + 1
    runner, sent = AheadRunner(slots), threading.Event()
    step, seen = runner.step, list[tuple[int, int]]()

    def counting(pcm_BS: FloatArray, active_B: BoolArray, steering: Steering | None = None) -> StepOutput:
        sent.wait(10.0)  # the first step waits for the audio of the others
        seen.append((int(active_B.sum()), len(runner.blocks)))
        return step(pcm_BS, active_B, steering)

    runner.step = counting  # type: ignore[method-assign]
    with hosting(runner) as hosted, hosted.worker() as remote:
        sessions = [remote.open() for _ in range(slots)]
        wait_for(lambda: remote.active == slots)
        for number, session in enumerate(sessions):
            session.send(speech(number, words=3))
        sent.set()
        for session in sessions:
            session.finish()
            list(session)
        assert not hosted.failures
    assert any(width == slots for width, _ in seen)
    assert all(width < slots or blocks == before for (_, before), (width, blocks) in pairwise(seen))
