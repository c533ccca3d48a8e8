"""OnnxRunner beyond the laws: options, what it does not import, and saved streams."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from tests.models import noise_and_tones, random_model, stt_config

from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.model.config import STTConfig

ON = np.array([True])
MODELS = {"transformer": stt_config(), "decoder": stt_config(codec="whisper", decoder=True)}
models = pytest.mark.parametrize("model", MODELS)


def make(config: STTConfig | None = None, **options) -> OnnxRunner:
    config = config or stt_config()
    return OnnxRunner(config, *random_model(config), threads=1, **options)


def frames(count: int, seed: int = 0) -> np.ndarray:
    return noise_and_tones(count * 0.08, seed).reshape(count, 1, 1920)


def tokens(runner: OnnxRunner, frames_T1S: np.ndarray) -> list[int]:
    return [int(runner.step(frame, ON).token_B[0]) for frame in frames_T1S]


@pytest.mark.parametrize("heard", [0, 3, 20])  # fresh, before any ring is full, past the wrap of all
@pytest.mark.parametrize("quantize", [None, "int8"])
@models
def test_a_saved_stream_continues_in_another_runner(heard: int, quantize: str | None, model: str):
    audio = frames(heard + 10)
    first, second = (make(MODELS[model], quantize=quantize) for _ in range(2))
    tokens(first, audio[:heard])
    saved = first.snapshot(0)
    expected = tokens(first, audio[heard:])
    tokens(second, frames(12, seed=1))
    second.restore(0, saved)
    assert tokens(second, audio[heard:]) == expected


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@models
def test_no_bit_of_a_slot_depends_on_how_many_others_are_active(quantize: str | None, model: str):
    runner = make(MODELS[model], slots=5, quantize=quantize)
    audio = np.concatenate([frames(20, seed) for seed in range(5)], axis=1)
    activity = np.random.default_rng(0).random((20, 5)) < 0.4
    activity[:, 0] = True
    heard = []
    for active_TB in (np.ones((20, 5), bool), activity):
        runner.reset(range(5))
        steps = [runner.step(*frame) for frame in zip(audio, active_TB, strict=True)]
        heard.append(np.array([[step.logprob_B[0], *step.pause_BH[0]] for step in steps]))
    np.testing.assert_array_equal(*heard)


def test_slots_after_the_last_active_one_are_not_computed(monkeypatch: pytest.MonkeyPatch):
    runner = make(slots=6)
    rows: list[int] = []
    step = runner.lm.step
    monkeypatch.setattr(runner.lm, "step", lambda *inputs: (rows.append(len(inputs[0])), step(*inputs)))
    for slots in ([0], [2], [1, 3], [5], []):
        runner.step(np.zeros((6, 1920), np.float32), np.isin(np.arange(6), slots))
    assert rows == [2, 4, 4, 6]


def test_condition_values_change_the_text():
    half, four = (stt_config().model_copy(update={"condition_values": {"delay": d}}) for d in (0.5, 4.0))
    assert tokens(make(half), frames(15)) != tokens(make(four), frames(15))


def test_the_caller_may_keep_the_output_of_a_step():
    runner = make()
    first, second = (runner.step(frame, ON) for frame in frames(2))
    again = make().step(frames(2)[0], ON)
    np.testing.assert_array_equal(first.pause_BH, again.pause_BH)
    assert not np.array_equal(first.pause_BH, second.pause_BH)


def test_a_runner_without_slots_is_refused():
    with pytest.raises(ValueError, match="slots=0"):
        make(slots=0)


def test_an_unknown_slot_is_refused():
    runner = make()
    for call in (lambda: runner.reset([1]), lambda: runner.snapshot(-1), lambda: runner.restore(2, runner.snapshot(0))):
        with pytest.raises(ValueError, match="this runner has slots 0 to 0"):
            call()


def test_neither_torch_nor_onnx_is_imported():
    program = """
import sys
import numpy as np
from tests.models import random_model, stt_config
from slipstream.backends.onnx.runner import OnnxRunner
config = stt_config()
OnnxRunner(config, *random_model(config), threads=1).step(np.zeros((1, 1920), np.float32), np.array([True]))
print(sorted({"torch", "onnx", "mlx", "transformers"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
