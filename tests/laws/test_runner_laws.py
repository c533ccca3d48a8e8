"""The laws of a Runner, for every backend, until every ring has wrapped.

1. Streaming equals offline. 2. A slot's output is the same alone and with any other slots. 3. Pausing or resetting one
slot changes no bit of another's state, nor of its output at the same batch size (tests/backends/torch/test_buckets.py
covers a change of the batch size). 4. is a matter of the LM's positions: see the tests of each backend's LM.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.laws.backends import BACKENDS, ROUNDED, MakeRunner
from tests.models import CODECS, noise_and_tones, random_model, stt_config

from slipstream.errors import AudioError
from slipstream.model.config import STTConfig
from slipstream.model.runner import Runner

FRAMES = 26  # the LM's ring wraps after 7 frames, the codec's after 6
SLOTS = 4

pytestmark = pytest.mark.parametrize("make", BACKENDS)
both_encoders = pytest.mark.parametrize("codec", ["waveform", "whisper", "decoder"])
every_model = pytest.mark.parametrize("codec", ["waveform", "whisper", "decoder", "vectors"])

_runners: dict[tuple[MakeRunner, int, str], Runner] = {}


def runner_for(make: MakeRunner, slots: int, codec: str = "waveform") -> Runner:
    """One runner per backend and size, because creating it costs more than the steps of a test."""
    key = (make, slots, codec)
    if key not in _runners:
        _runners[key] = make(model_config(codec), slots=slots)
    runner = _runners[key]
    runner.reset(range(slots))
    return runner


def model_config(codec: str) -> STTConfig:
    """A small model by its codec; `decoder`: Whisper's encoder and decoder; `vectors`: with four vectors per frame."""
    if codec in ("decoder", "vectors"):
        return stt_config(codec="whisper", decoder=True, vectors=4 if codec == "vectors" else 1)
    return stt_config(codec=codec)


def audio(seed: int, frames: int = FRAMES) -> np.ndarray:
    return noise_and_tones(frames * 0.08, seed=seed).reshape(frames, 1920)


def run_alone(make: MakeRunner, frames_TS: np.ndarray, codec: str = "waveform") -> list[tuple]:
    runner = runner_for(make, 1, codec)
    outputs = []
    for frame in frames_TS:
        out = runner.step(frame[None], np.array([True]))
        outputs.append((int(out.token_B[0]), float(out.logprob_B[0]), out.pause_BH[0].copy()))
    return outputs


def assert_same(left: list[tuple], right: list[tuple]) -> None:
    assert [token for token, _, _ in left] == [token for token, _, _ in right]
    np.testing.assert_allclose([p for _, p, _ in left], [p for _, p, _ in right], atol=2e-4)
    np.testing.assert_allclose([h for _, _, h in left], [h for _, _, h in right], atol=2e-4)


def test_shapes_and_types_of_a_step(make: MakeRunner):
    runner = runner_for(make, SLOTS)
    assert (runner.frame_samples, runner.frame_rate, runner.slots, runner.delay_frames) == (1920, 12.5, SLOTS, 6)
    out = runner.step(np.zeros((SLOTS, 1920), np.float32), np.ones(SLOTS, bool))
    assert out.token_B.shape == (SLOTS,)
    assert out.token_B.dtype == np.int64
    assert out.logprob_B.shape == (SLOTS,)
    assert out.logprob_B.dtype == np.float32
    assert (out.logprob_B <= 0).all()
    assert out.pause_BH.shape == (SLOTS, 4)
    assert ((out.pause_BH >= 0) & (out.pause_BH <= 1)).all()


@pytest.mark.parametrize("codec", [*CODECS, "decoder", "vectors"])
def test_streaming_equals_offline(make: MakeRunner, codec: str):
    torch = pytest.importorskip("torch", reason="the offline forward is the PyTorch model's")
    from slipstream.nn.build import build_codec, build_lm

    config = model_config(codec)
    lm_weights, codec_weights = random_model(config)
    encoder, lm = build_codec(config.codec, codec_weights), build_lm(config.lm, lm_weights)
    streamed = run_alone(make, audio(5), codec)
    with torch.inference_mode():
        codes, _ = encoder.encode(torch.from_numpy(audio(5)).reshape(1, -1), num_codebooks=config.lm.num_codebooks)
        text, initial = lm.initial_tokens(1)
        first = lm.text_logits(lm(text, initial, None, lm.condition())[0])[0, -1].argmax()
        said = torch.tensor([[int(text), int(first), *(token for token, _, _ in streamed[:-1])]])
        hidden, _ = lm(said, torch.cat([initial, codes], dim=2), None, lm.condition())
        scores = lm.text_logits(hidden)[0, 1:].log_softmax(dim=-1)
        pauses = lm.pause_logits(hidden)[0, 1:].softmax(dim=-1)[..., 0]
    tokens = scores.argmax(dim=-1)
    assert len(set(tokens.tolist())) > 3, "random weights that always give the same token prove nothing"
    offline = list(zip(tokens.tolist(), scores.max(dim=-1).values.tolist(), pauses.numpy(), strict=True))
    if make in ROUNDED:
        np.testing.assert_allclose([p for _, p, _ in streamed], [p for _, p, _ in offline], atol=0.15)
        assert any(left[1] != right[1] for left, right in zip(streamed, offline, strict=True))
    else:
        assert_same(streamed, offline)


@both_encoders
@settings(max_examples=6)
@given(st.data())
def test_a_slot_in_a_batch_equals_the_slot_alone(make: MakeRunner, codec: str, data: st.DataObject):
    """Random pauses and resets of every slot: each slot returns what its audio since its reset returns alone."""
    runner = runner_for(make, SLOTS, codec)
    sources = [audio(10 * slot + data.draw(st.integers(0, 3))) for slot in range(SLOTS)]
    position = [0] * SLOTS
    outputs: list[list[list[tuple]]] = [[[]] for _ in range(SLOTS)]
    inputs: list[list[list[np.ndarray]]] = [[[]] for _ in range(SLOTS)]
    for _ in range(FRAMES):
        resets = [slot for slot in range(SLOTS) if data.draw(st.integers(0, 15)) == 0]
        runner.reset(resets)
        for slot in resets:
            outputs[slot].append([])
            inputs[slot].append([])
        active = np.array([data.draw(st.integers(0, 3)) > 0 for _ in range(SLOTS)])
        pcm = np.stack([source[position[slot]] for slot, source in enumerate(sources)])
        out = runner.step(pcm, active)
        for slot in np.flatnonzero(active):
            inputs[slot][-1].append(pcm[slot])
            outputs[slot][-1].append((int(out.token_B[slot]), float(out.logprob_B[slot]), out.pause_BH[slot].copy()))
            position[slot] += 1
    for slot in range(SLOTS):
        for frames, found in zip(inputs[slot], outputs[slot], strict=True):
            if frames:
                assert_same(found, run_alone(make, np.stack(frames), codec))


@every_model
def test_pausing_or_resetting_a_slot_changes_no_bit_of_another(make: MakeRunner, codec: str):
    runner = runner_for(make, SLOTS, codec)
    sources = [audio(seed) for seed in range(SLOTS)]
    everyone = np.ones(SLOTS, bool)
    undisturbed = [runner.step(np.stack([s[t] for s in sources]), everyone) for t in range(FRAMES)]
    runner.reset(range(SLOTS))
    rng = np.random.default_rng(0)
    for t in range(FRAMES):
        active = everyone.copy()
        active[2] = rng.random() < 0.5
        pcm = np.stack([s[t] for s in sources])
        pcm[2] = rng.standard_normal(1920) if active[2] else np.nan
        if rng.random() < 0.2:
            runner.reset([2])
        out = runner.step(pcm, active)
        for slot in (0, 1, 3):
            assert out.token_B[slot] == undisturbed[t].token_B[slot]
            assert out.logprob_B[slot] == undisturbed[t].logprob_B[slot]
            assert (out.pause_BH[slot] == undisturbed[t].pause_BH[slot]).all()


@every_model
@pytest.mark.parametrize("after", [0, 3, 9, 20])
def test_a_snapshot_continues_in_another_slot_and_does_not_change(make: MakeRunner, codec: str, after: int):
    runner = runner_for(make, SLOTS, codec)
    frames = audio(3)
    whole = run_alone(make, frames, codec)
    only_0, only_3 = np.array([True, False, False, False]), np.array([False, False, False, True])
    for frame in frames[:after]:
        runner.step(np.stack([frame] * SLOTS), only_0)
    saved = runner.snapshot(0)
    for frame in audio(8)[:5]:
        runner.step(np.stack([frame] * SLOTS), only_0 | only_3)
    runner.restore(3, saved)
    outputs = []
    for frame in frames[after:]:
        out = runner.step(np.stack([frame] * SLOTS), only_3)
        outputs.append((int(out.token_B[3]), float(out.logprob_B[3]), out.pause_BH[3].copy()))
    assert_same(outputs, whole[after:])


@every_model
def test_a_launched_step_is_the_same_step_whatever_happens_to_other_slots_meanwhile(make: MakeRunner, codec: str):
    runner = runner_for(make, SLOTS, codec)
    whole = run_alone(make, audio(3), codec)
    only_1, outputs = np.array([False, True, False, False]), []
    for t, frame in enumerate(audio(3)):
        collect = runner.launch(np.stack([frame] * SLOTS), only_1)
        runner.reset([0])
        runner.restore(2, runner.snapshot(3))
        out = collect()
        outputs.append((int(out.token_B[1]), float(out.logprob_B[1]), out.pause_BH[1].copy()))
        if t % 5 == 0:
            runner.step(np.stack([frame] * SLOTS), ~only_1)
    assert_same(outputs, whole)


@every_model
@pytest.mark.parametrize("before", [2, 9, 21])
def test_a_savepoint_takes_back_the_steps_after_it(make: MakeRunner, codec: str, before: int):
    runner = runner_for(make, SLOTS, codec)
    frames = audio(5)
    whole = run_alone(make, frames, codec)
    only_2, silent = np.array([False, False, True, False]), np.zeros((SLOTS, 1920), np.float32)
    outputs = []
    for t, frame in enumerate(frames):
        if t == before:
            saved = runner.savepoint(2, 4)
            for _ in range(4):
                runner.step(silent, only_2)
            runner.restore(2, saved)
        out = runner.step(np.stack([frame] * SLOTS), only_2)
        outputs.append((int(out.token_B[2]), float(out.logprob_B[2]), out.pause_BH[2].copy()))
    assert_same(outputs, whole)


def test_the_first_frame_counts(make: MakeRunner):
    frames = audio(4, frames=3)
    changed = frames.copy()
    changed[0] = audio(9, frames=1)[0]
    assert run_alone(make, frames)[0][1] != run_alone(make, changed)[0][1]


def test_the_first_frame_of_a_whisper_encoder_counts_after_its_delay(make: MakeRunner):
    frames = audio(4, frames=5)
    changed = frames.copy()
    changed[0] = audio(9, frames=1)[0]
    left, right = run_alone(make, frames, "whisper"), run_alone(make, changed, "whisper")
    # The delay of 12 positions at 50 Hz is three frames of 80 ms.
    assert [a[1] == b[1] for a, b in zip(left, right, strict=True)] == [True, True, True, False, False]


def test_samples_that_are_not_numbers_are_refused_without_a_change_of_state(make: MakeRunner):
    runner = runner_for(make, 2)
    frames = audio(6, frames=4)
    both = np.ones(2, bool)
    expected = run_alone(make, frames)
    outputs = []
    for t, frame in enumerate(frames):
        if t == 2:
            bad = np.stack([frame, frame])
            bad[1, 7] = np.nan
            with pytest.raises(AudioError, match=r"slot \[1\]"):
                runner.step(bad, both)
        out = runner.step(np.stack([frame, frame]), both)
        outputs.append((int(out.token_B[0]), float(out.logprob_B[0]), out.pause_BH[0].copy()))
    assert_same(outputs, expected)


def test_a_step_of_the_wrong_shape_is_refused(make: MakeRunner):
    with pytest.raises(ValueError, match=r"\[1, 1920\]"):
        runner_for(make, 1).step(np.zeros((1, 1000), np.float32), np.ones(1, bool))
    with pytest.raises(ValueError, match="slot 5"):
        runner_for(make, 1).reset([5])
