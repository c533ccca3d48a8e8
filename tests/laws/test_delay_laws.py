"""The laws of streams with different delays in one batch, for every backend."""

from __future__ import annotations

import numpy as np
import pytest
from tests.laws.backends import BACKENDS, MakeRunner
from tests.laws.test_runner_laws import SLOTS, assert_same, audio, runner_for
from tests.models import stt_config

from slipstream.errors import ConfigError
from slipstream.model.runner import MAX_DELAYS

pytestmark = pytest.mark.parametrize("make", BACKENDS)

DELAYS = (None, 0.8, 2.4, 0.8)
FRAMES = 10


def test_streams_with_different_delays_equal_their_solo_runs(make: MakeRunner):
    runner, single = runner_for(make, SLOTS), runner_for(make, 1)
    for slot, delay in enumerate(DELAYS):
        runner.reset([slot], delay)
    frames_TBS = np.stack([audio(slot, FRAMES) for slot in range(SLOTS)], axis=1)
    outputs = [runner.step(frame_BS, np.ones(SLOTS, bool)) for frame_BS in frames_TBS]
    by_slot = []
    for slot, delay in enumerate(DELAYS):
        single.reset([0], delay)
        alone = [single.step(frames_TBS[t, [slot]], np.array([True])) for t in range(FRAMES)]
        found = [(int(out.token_B[slot]), float(out.logprob_B[slot]), out.pause_BH[slot]) for out in outputs]
        assert_same(found, [(int(out.token_B[0]), float(out.logprob_B[0]), out.pause_BH[0]) for out in alone])
        by_slot.append(found)
    single.reset([0])
    usual = [float(single.step(frames_TBS[t, [1]], np.array([True])).logprob_B[0]) for t in range(FRAMES)]
    assert usual != pytest.approx([logprob for _, logprob, _ in by_slot[1]], abs=1e-3)


def test_a_copy_of_a_slot_keeps_its_delay(make: MakeRunner):
    runner = runner_for(make, SLOTS)
    runner.reset([0, 3])
    runner.reset([0], 2.4)
    frames_TS = audio(1, FRAMES)
    both = np.array([True, False, False, True])
    runner.restore(3, runner.snapshot(0))
    for frame_S in frames_TS:
        out = runner.step(np.stack([frame_S] * SLOTS), both)
        assert out.token_B[0] == out.token_B[3]
        assert out.logprob_B[0] == pytest.approx(out.logprob_B[3], abs=2e-4)


def test_the_state_of_a_few_delays_is_kept(make: MakeRunner):
    """Clients choose delays: a runner that kept the state of each would run out of memory."""
    runner = runner_for(make, 1)
    frame_1S = audio(1, 1)
    outputs = []
    for delay in (0.8, *np.linspace(1, 2, 3 * MAX_DELAYS), 0.8):
        runner.reset([0], float(delay))
        outputs.append(runner.step(frame_1S, np.array([True])))
        assert len(runner._fresh_of) <= MAX_DELAYS
    assert outputs[0].logprob_B[0] == outputs[-1].logprob_B[0] != outputs[1].logprob_B[0]


def test_delays_that_a_model_does_not_have_are_refused(make: MakeRunner):
    assert runner_for(make, 1).delay_frames_of(0.8) == 10
    with pytest.raises(ConfigError, match=r"at least 0\.08 seconds"):
        runner_for(make, 1).reset([0], 0.001)
    with pytest.raises(ConfigError, match=r"this model has one delay, 0\.5 s"):
        stt_config(conditioners=()).with_delay(1.0)
