"""The laws of steered steps, for every backend: biases, candidates and forced tokens."""

from __future__ import annotations

import numpy as np
import pytest
from tests.laws.backends import BACKENDS, MakeRunner
from tests.laws.test_runner_laws import SLOTS, audio, both_encoders, every_model, runner_for

from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.runner import CANDIDATES, MAX_BIASED, Runner, Steering, StepOutput

pytestmark = pytest.mark.parametrize("make", BACKENDS)

EVERYONE = np.ones(SLOTS, bool)


def frames(seed: int = 0, count: int = 12) -> np.ndarray:
    return np.stack([audio(seed + slot, count) for slot in range(SLOTS)], axis=1)


def run(runner: Runner, frames_TBS: np.ndarray, steering: Steering | None) -> list[StepOutput]:
    runner.reset(range(SLOTS))
    return [runner.step(frame_BS, EVERYONE, steering) for frame_BS in frames_TBS]


def towards(slot: int, token: int, bias: float) -> Steering:
    """One token of one slot, and entries without use in all other places."""
    id_BN, bias_BN = np.zeros((SLOTS, 3), np.int64), np.zeros((SLOTS, 3), np.float32)
    id_BN[slot, 1], bias_BN[slot, 1] = token, bias
    return Steering(id_BN, bias_BN)


def assert_equal_rows(left: list[StepOutput], right: list[StepOutput], slots: list[int]) -> None:
    for one, other in zip(left, right, strict=True):
        assert (one.token_B[slots] == other.token_B[slots]).all()
        np.testing.assert_allclose(one.logprob_B[slots], other.logprob_B[slots], atol=1e-5)
        assert (one.pause_BH[slots] == other.pause_BH[slots]).all()


def test_without_a_bias_the_tokens_do_not_change_and_are_the_first_candidates(make: MakeRunner):
    runner = runner_for(make, SLOTS)
    plain, steered = run(runner, frames(), None), run(runner, frames(), Steering.none(SLOTS))
    assert_equal_rows(plain, steered, list(range(SLOTS)))
    assert all(output.candidates is None for output in plain)
    for output in steered:
        found = output.candidates
        assert found is not None
        assert found.token_BK.shape == found.logprob_BK.shape == (SLOTS, CANDIDATES)
        assert (found.token_BK[:, 0] == output.token_B).all()
        assert (found.plain_B == output.token_B).all()
        np.testing.assert_allclose(found.logprob_BK[:, 0], output.logprob_B, atol=1e-6)
        np.testing.assert_allclose(found.plain_logprob_B, output.logprob_B, atol=1e-6)
        assert (np.diff(found.logprob_BK, axis=1) <= 0).all()
        assert [len(set(row)) for row in found.token_BK.tolist()] == [CANDIDATES] * SLOTS


@both_encoders
def test_a_bias_changes_its_own_slot_only(make: MakeRunner, codec: str):
    runner = runner_for(make, SLOTS, codec)
    plain, steered = run(runner, frames(), None), run(runner, frames(), towards(2, 6, 100.0))
    assert_equal_rows(plain, steered, [0, 1, 3])
    assert {int(output.token_B[2]) for output in steered} == {6}
    assert {int(output.token_B[2]) for output in plain} != {6}
    again = run(runner, frames(), None)
    assert_equal_rows(plain, again, list(range(SLOTS)))


def test_log_probabilities_are_those_of_the_model_without_the_bias(make: MakeRunner):
    runner = runner_for(make, SLOTS)
    free = run(runner, frames(count=1), Steering.none(SLOTS))[0].candidates
    assert free is not None
    second, logprob = int(free.token_BK[1, 1]), float(free.logprob_BK[1, 1])
    output = run(runner, frames(count=1), towards(1, second, 50.0))[0]
    steered = output.candidates
    assert steered is not None
    assert int(output.token_B[1]) == int(steered.token_BK[1, 0]) == second
    assert float(output.logprob_B[1]) == pytest.approx(logprob, abs=1e-5)
    assert float(steered.logprob_BK[1, 0]) == pytest.approx(logprob, abs=1e-5)
    assert steered.token_BK[1, 1] == steered.plain_B[1] == free.plain_B[1]
    assert steered.plain_logprob_B[1] == pytest.approx(free.plain_logprob_B[1], abs=1e-6)


@both_encoders
@pytest.mark.parametrize("token", [PAD_ID, 6])
def test_the_next_step_reads_a_forced_token(make: MakeRunner, codec: str, token: int):
    """A slot whose token was picked by a bias and one where it was forced afterwards continue alike."""
    runner = runner_for(make, SLOTS, codec)
    first, *others = frames(3, 8)
    runner.reset(range(SLOTS))
    runner.step(first, EVERYONE, towards(1, token, 100.0))
    biased = [runner.step(frame_BS, EVERYONE) for frame_BS in others]
    runner.reset(range(SLOTS))
    runner.step(first, EVERYONE)
    runner.force([1], [token])
    runner.restore(1, runner.snapshot(1))  # a copy has the forced token
    forced = [runner.step(frame_BS, EVERYONE) for frame_BS in others]
    free = run(runner, frames(3, 8), None)[1:]
    assert_equal_rows(biased, forced, list(range(SLOTS)))
    assert_equal_rows(free, forced, [0, 2, 3])
    assert any(one.logprob_B[1] != other.logprob_B[1] for one, other in zip(free, forced, strict=True))


@every_model
def test_the_text_of_a_slot_continues_in_one_with_the_same_audio(make: MakeRunner, codec: str):
    runner = runner_for(make, SLOTS, codec)
    same_TBS = np.repeat(audio(5, 24)[:, None], SLOTS, axis=1)
    written = [6, PAD_ID, 7, PAD_ID, PAD_ID, 5, 4]
    runner.reset(range(SLOTS))
    for step, frame_BS in enumerate(same_TBS[:14]):
        runner.step(frame_BS, EVERYONE)
        runner.force([1, 2], [written[step % 7], written[(step + 3) % 7]])
    runner.copy_text(1, 2)
    later = [runner.step(frame_BS, EVERYONE) for frame_BS in same_TBS[14:]]
    for output in later:
        assert output.token_B[1] == output.token_B[2]
        np.testing.assert_allclose(output.logprob_B[1], output.logprob_B[2], atol=1e-5)
        np.testing.assert_allclose(output.pause_BH[1], output.pause_BH[2], atol=1e-5)
    assert any(output.logprob_B[0] != output.logprob_B[1] for output in later)


def test_steering_that_does_not_fit_is_refused(make: MakeRunner):
    runner = runner_for(make, SLOTS)
    frame_BS = frames(count=1)[0]
    with pytest.raises(ValueError, match=rf"\[{SLOTS}, N\] with N up to {MAX_BIASED}"):
        runner.step(frame_BS, EVERYONE, Steering.none(SLOTS + 1))
    with pytest.raises(ValueError, match="0 to 39"):
        runner.step(frame_BS, EVERYONE, towards(0, 40, 1.0))
    with pytest.raises(ValueError, match="token 40"):
        runner.force([0], [40])
    with pytest.raises(ValueError, match="a token for each slot"):
        runner.force([0, 1], [5])


@both_encoders
@pytest.mark.parametrize(("last", "token"), [(PAD_ID, 6), (6, PAD_ID), (PAD_ID, WORD_ID), (6, 5)])
@pytest.mark.parametrize("before", [2, 9])
def test_a_token_forced_after_steps_without_the_slot_continues_alike(
    make: MakeRunner, codec: str, last: int, token: int, before: int
):
    runner = runner_for(make, SLOTS, codec)

    def outputs(idle_steps: int) -> list[StepOutput]:
        runner.reset(range(SLOTS))
        *first, end = frames(3, before)
        for frame_BS in first:
            runner.step(frame_BS, EVERYONE, towards(1, 6, 100.0))
        runner.step(end, EVERYONE, towards(1, last, 100.0))
        for frame_BS in frames(11, idle_steps):
            runner.step(frame_BS, np.arange(SLOTS) != 1)
        runner.force([1], [token])
        return [runner.step(frame_BS, EVERYONE) for frame_BS in frames(5, 8)]

    assert_equal_rows(outputs(0), outputs(2), [1])
