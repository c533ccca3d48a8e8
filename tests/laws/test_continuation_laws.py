"""The laws of a stream that begins within a longer one, for every backend.

It has the frames from `FIRST` on, the number of the first, and the text of the longer stream. Once the frames before
are out of all contexts, the two are the same.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.laws.backends import BACKENDS, ROUNDED, MakeRunner
from tests.laws.test_runner_laws import assert_same, audio, runner_for

from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.runner import Runner

pytestmark = pytest.mark.parametrize("make", BACKENDS)

FRAMES, FIRST = 60, 11
REACH = 34
"""Frames that a frame depends on: two layers of the LM see 7 each, three of the encoder 11 + 4 positions, 4 a frame."""
ACTIVE = np.array([False, True])


def run(runner: Runner, frames_TS: np.ndarray, text_T: list[int] | None = None) -> list[tuple]:
    """The outputs of slot 1. `text_T`: what it reads in the next step."""
    outputs = []
    for t, frame_S in enumerate(frames_TS):
        out = runner.step(np.stack([np.zeros_like(frame_S), frame_S]), ACTIVE)
        outputs.append((int(out.token_B[1]), float(out.logprob_B[1]), out.pause_BH[1].copy()))
        if text_T is not None:
            runner.force([1], [text_T[t]])
    return outputs


@pytest.mark.parametrize("codec", ["waveform", "whisper"])
def test_a_continued_stream_becomes_that_of_the_whole_audio(make: MakeRunner, codec: str) -> None:
    runner = runner_for(make, 2, codec)
    whole = run(runner, audio(7, FRAMES))
    text_T = [token for token, _, _ in whole]
    runner.reset([1], first_frame=FIRST)
    runner.force([1], [text_T[FIRST - 1]])
    later = run(runner, audio(7, FRAMES)[FIRST:], text_T[FIRST:])
    if make in ROUNDED:
        agree = [one[0] == other[0] for one, other in zip(later[REACH:], whole[FIRST + REACH :], strict=True)]
        assert np.mean(agree) > 0.8
    else:
        assert_same(later[REACH:], whole[FIRST + REACH :])


@pytest.mark.parametrize("codec", ["whisper", "decoder"])
def test_sinusoidal_positions_start_at_the_first_frame(make: MakeRunner, codec: str) -> None:
    runner = runner_for(make, 2, codec)
    plain = run(runner, audio(8, 8))
    found = {}
    for first_frame in (30, 375):  # 375 frames have the 1,500 positions after which they repeat
        runner.reset([1], first_frame=first_frame)
        runner.restore(0, runner.snapshot(1))  # a copy has the same positions
        runner.restore(1, runner.snapshot(0))
        found[first_frame] = run(runner, audio(8, 8))
    assert_same(found[375], plain)
    assert [logprob for _, logprob, _ in found[30]] != pytest.approx([p for _, p, _ in plain], abs=1e-3)
    runner.reset([1])
    assert_same(run(runner, audio(8, 8)), plain)


def test_a_continued_decoder_becomes_the_whole_where_its_learnt_positions_repeat(make: MakeRunner) -> None:
    runner = runner_for(make, 2, "decoder")
    runner.force([1], [5])
    whole = run(runner, audio(7, 2 * FRAMES))
    text_T = [token for token, _, _ in whole]
    # The initial token has number 0, and the token before the continued stream 1. Positions repeat after 9.
    new_T = np.array([token not in (PAD_ID, WORD_ID) for token in text_T])
    number_T = 1 + new_T.cumsum()
    first = next(t + 1 for t in range(FIRST, FRAMES) if new_T[t] and number_T[t] % 9 == 1)
    runner.reset([1], first_frame=first)
    runner.force([1], [text_T[first - 1]])
    later = run(runner, audio(7, 2 * FRAMES)[first:], text_T[first:])
    same = 2 * FRAMES - 20  # the frames before the continued stream are out of all contexts
    if make in ROUNDED:
        agree = [one[0] == other[0] for one, other in zip(later[same - first :], whole[same:], strict=True)]
        assert np.mean(agree) > 0.8
    else:
        assert_same(later[same - first :], whole[same:])
