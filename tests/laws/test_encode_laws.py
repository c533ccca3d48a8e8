"""The laws of frames that are encoded ahead of their steps, for the backend that does."""

from __future__ import annotations

import numpy as np
import pytest
from tests.laws.backends import BACKENDS, MakeRunner, onnx_runner
from tests.laws.test_runner_laws import audio
from tests.models import stt_config

from slipstream.errors import AudioError
from slipstream.model.runner import Runner

CONFIG = stt_config(codec="whisper", decoder=True, vectors=2, languages=("en", "fr"))
FRAMES = 150
FIRST, SECOND = np.array([True, False]), np.array([False, True])
NOTHING_BS = np.zeros((2, 1920), np.float32)

Output = tuple[int, float, bytes]


def steps(runner: Runner, active_B: np.ndarray, frames_TS: np.ndarray | int) -> list[Output]:
    """Step one slot with these frames, or over this number of frames that are encoded already."""
    slot = int(np.flatnonzero(active_B)[0])
    outputs = []
    for frame in range(frames_TS if isinstance(frames_TS, int) else len(frames_TS)):
        pcm_BS = NOTHING_BS.copy()
        if not isinstance(frames_TS, int):
            pcm_BS[slot] = frames_TS[frame]
        out = runner.step(pcm_BS, active_B)
        outputs.append((int(out.token_B[slot]), float(out.logprob_B[slot]), out.pause_BH[slot].tobytes()))
    return outputs


def test_frames_encoded_ahead_give_the_same_outputs_bit_for_bit():
    runner = onnx_runner(CONFIG, slots=2)
    frames_TS = audio(1, FRAMES)
    expected = steps(runner, FIRST, frames_TS)
    random, outputs = np.random.default_rng(2), []
    runner.reset([0, 1])
    while len(outputs) < FRAMES:
        block_FS = frames_TS[len(outputs) :][: random.integers(1, runner.max_ahead + 1)]
        if random.random() < 0.8:
            runner.encode([1], block_FS)
            outputs += steps(runner, SECOND, len(block_FS))
        else:
            outputs += steps(runner, SECOND, block_FS)
    assert outputs == expected


def test_a_stream_next_to_one_that_is_ahead_does_not_change():
    runner = onnx_runner(CONFIG, slots=2)
    frames_TS, others_TS = audio(3, 24), audio(4, 24)
    expected = steps(runner, FIRST, frames_TS), steps(runner, SECOND, others_TS)
    runner.reset([0, 1])
    outputs: tuple[list[Output], list[Output]] = ([], [])
    for frame in range(24):
        if frame % 8 == 3 and frame < 18:
            runner.encode([0], frames_TS[frame : frame + 5])
        out = runner.step(np.stack([frames_TS[frame], others_TS[frame]]), FIRST | SECOND)
        for slot, of_slot in enumerate(outputs):
            of_slot.append((int(out.token_B[slot]), float(out.logprob_B[slot]), out.pause_BH[slot].tobytes()))
    assert outputs == expected


def test_a_copy_of_a_slot_has_its_encoded_frames():
    runner = onnx_runner(CONFIG, slots=2)
    frames_TS = audio(5, 12)
    steps(runner, FIRST, frames_TS[:4])
    runner.encode([0], frames_TS[4:8])
    steps(runner, FIRST, 1)
    state = runner.snapshot(0)
    expected = steps(runner, FIRST, 3) + steps(runner, FIRST, frames_TS[8:])
    runner.restore(1, state)
    assert steps(runner, SECOND, 3) + steps(runner, SECOND, frames_TS[8:]) == expected


def test_a_reset_drops_encoded_frames():
    runner = onnx_runner(CONFIG, slots=2)
    frames_TS = audio(6, 10)
    expected = steps(runner, FIRST, frames_TS)
    runner.encode([0], audio(7, 3))
    runner.reset([0])
    assert steps(runner, FIRST, frames_TS) == expected


def test_slots_with_the_same_audio_are_encoded_once():
    runner = onnx_runner(CONFIG, slots=2)
    frames_TS = audio(8, 16)
    expected = steps(runner, FIRST, frames_TS)
    runner.reset([0, 1])
    outputs: tuple[list[Output], list[Output]] = ([], [])
    for first in (0, 8):
        runner.encode([1, 0], frames_TS[first : first + 8])
        for _ in range(8):
            out = runner.step(NOTHING_BS, FIRST | SECOND)
            for slot, of_slot in enumerate(outputs):
                of_slot.append((int(out.token_B[slot]), float(out.logprob_B[slot]), out.pause_BH[slot].tobytes()))
    assert outputs == (expected, expected)


def test_a_stream_that_continues_a_longer_one_is_encoded_ahead():
    runner = onnx_runner(CONFIG, slots=2)
    frames_TS = audio(9, 12)
    runner.reset([0, 1], first_frame=1001)
    expected = steps(runner, FIRST, frames_TS)
    runner.encode([1], frames_TS[:6])
    assert steps(runner, SECOND, 6) + steps(runner, SECOND, frames_TS[6:]) == expected


def test_frames_that_do_not_fit_are_refused():
    runner = onnx_runner(CONFIG, slots=2)
    most = runner.max_ahead
    for wrong_FS in (audio(1, most + 1), audio(1, 2)[:0], audio(1, 2)[:, :100], audio(1, 1)[0]):
        with pytest.raises(ValueError, match=f"expected 1 to {most} frames of 1920 samples"):
            runner.encode([0], wrong_FS)
    with pytest.raises(ValueError, match="slot 2"):
        runner.encode([2], audio(1, 1))
    with pytest.raises(AudioError, match="not finite"):
        runner.encode([0], np.full((1, 1920), np.nan, np.float32))
    runner.encode([0], audio(1, 3))
    steps(runner, FIRST, 1)
    with pytest.raises(ValueError, match=r"have \[2\] encoded frames left: use them first"):
        runner.encode([0], audio(1, 3))


@pytest.mark.parametrize("make", BACKENDS)
def test_a_runner_that_does_not_encode_ahead_refuses_it(make: MakeRunner):
    runner = make(stt_config(), slots=1)
    assert runner.max_ahead == 0
    with pytest.raises(ValueError, match=r"0 frames|does not encode ahead"):
        runner.encode([0], audio(1, 1))
