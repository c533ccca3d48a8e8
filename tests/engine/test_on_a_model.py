"""Sessions on a true backend with random weights: what they do to its state, not what it writes."""

from __future__ import annotations

import numpy as np
import pytest
from tests.fakes import drive, new_session, random_chunks, run, words_of
from tests.models import noise_and_tones, random_model, stt_config

from slipstream.backends.onnx.runner import OnnxRunner

FRAME_SAMPLES = 1920
SECONDS = 4.0


@pytest.fixture(scope="module")
def runner() -> OnnxRunner:
    config = stt_config()
    lm, codec = random_model(config)
    return OnnxRunner(config, lm, codec, slots=2)


def future(runner: OnnxRunner) -> tuple[list[int], list[float]]:
    """What slot 0 writes of audio that is the same each time: a fingerprint of its state."""
    audio_TS = noise_and_tones(1.6, seed=9).reshape(-1, FRAME_SAMPLES)
    tokens, logprobs = [], []
    for frame_S in audio_TS:
        output = runner.step(np.stack([frame_S, frame_S]), np.array([True, False]))
        tokens.append(int(output.token_B[0]))
        logprobs.append(float(output.logprob_B[0]))
    return tokens, logprobs


def test_flushes_in_mid_stream_leave_no_trace_in_the_state(runner: OnnxRunner) -> None:
    audio_S = noise_and_tones(SECONDS)
    drive(new_session(runner), runner, [audio_S], finish=False)
    expected = future(runner)
    session = new_session(runner)
    drive(session, runner, [], finish=False)
    for chunk in random_chunks(audio_S, np.random.default_rng(0), typical=9000):
        session.push(chunk)
        run(session, runner)
        session.flush(now=0.0)
        run(session, runner)
    assert future(runner) == expected


def test_chunks_do_not_matter(runner: OnnxRunner) -> None:
    audio_S = noise_and_tones(SECONDS)
    whole = words_of(drive(new_session(runner), runner, [audio_S]))
    chunks = random_chunks(audio_S, np.random.default_rng(1), typical=700)
    assert words_of(drive(new_session(runner), runner, chunks)) == whole
    assert len(whole) > 3
