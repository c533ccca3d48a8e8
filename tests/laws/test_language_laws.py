"""The laws of streams that are set to a language, for every backend."""

from __future__ import annotations

import numpy as np
import pytest
from tests.laws.backends import BACKENDS, MakeRunner
from tests.laws.test_runner_laws import SLOTS, assert_same, audio
from tests.models import stt_config

from slipstream.model.runner import Runner, StepOutput

pytestmark = pytest.mark.parametrize("make", BACKENDS)

CONFIG = stt_config(codec="whisper", decoder=True, vectors=2, languages=("en", "fr"))
LANGUAGES = (0, 1, 2, 1)
FRAMES = 14
FRAMES_TBS = np.stack([audio(slot, FRAMES) for slot in range(SLOTS)], axis=1)
EVERYONE = np.ones(SLOTS, bool)


def run(runner: Runner, frames_TBS: np.ndarray) -> list[StepOutput]:
    return [runner.step(frame_BS, np.ones(frames_TBS.shape[1], bool)) for frame_BS in frames_TBS]


def row(outputs: list[StepOutput], slot: int) -> list[tuple]:
    return [(int(out.token_B[slot]), float(out.logprob_B[slot]), out.pause_BH[slot]) for out in outputs]


def test_streams_in_different_languages_equal_their_solo_runs(make: MakeRunner):
    runner, single = make(CONFIG, slots=SLOTS), make(CONFIG, slots=1)
    for _ in range(2):  # a slot had another language before
        for slot, language in enumerate(LANGUAGES):
            runner.reset([slot], language=LANGUAGES[slot - 1])
            runner.reset([slot], language=language)
        outputs = run(runner, FRAMES_TBS)
    logprobs = []
    for slot, language in enumerate(LANGUAGES):
        single.reset([0], language=language)
        alone = row(run(single, FRAMES_TBS[:, [slot]]), 0)
        assert_same(row(outputs, slot), alone)
        single.reset([0])
        free = row(run(single, FRAMES_TBS[:, [slot]]), 0)
        logprobs.append((language, alone, free))
    for language, alone, free in logprobs:
        changed = [one[1] for one in alone] != pytest.approx([one[1] for one in free], abs=1e-3)
        assert changed == (language > 0)


def test_without_a_language_nothing_changes(make: MakeRunner):
    """The tensors of the languages are not used: a model with others writes the same, bit for bit."""
    runner = make(CONFIG, slots=SLOTS)
    before = run(runner, FRAMES_TBS)
    runner.reset(range(SLOTS), language=2)
    run(runner, FRAMES_TBS)
    runner.reset(range(SLOTS))
    for one, other in zip(before, run(runner, FRAMES_TBS), strict=True):
        assert (one.token_B == other.token_B).all()
        assert (one.logprob_B == other.logprob_B).all()


def test_a_copy_of_a_slot_keeps_its_language(make: MakeRunner):
    runner = make(CONFIG, slots=SLOTS)
    runner.reset([0], language=2)
    runner.reset([3], language=1)
    both = np.array([True, False, False, True])
    half = FRAMES // 2
    for frame_S in audio(1, half):
        runner.step(np.stack([frame_S] * SLOTS), both)
    runner.restore(3, runner.snapshot(0))
    for frame_S in audio(2, half):
        out = runner.step(np.stack([frame_S] * SLOTS), both)
        assert out.token_B[0] == out.token_B[3]
        assert out.logprob_B[0] == pytest.approx(out.logprob_B[3], abs=2e-4)


def test_languages_that_a_model_does_not_have_are_refused(make: MakeRunner):
    runner = make(CONFIG, slots=1)
    for number in (-1, 3):
        with pytest.raises(ValueError, match=f"language {number}: this model has 2 to set"):
            runner.reset([0], language=number)
