"""TorchRunner beyond the laws: sampling, conditions, weights shared by several runners."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.models import noise_and_tones, random_model, stt_config  # noqa: E402

from slipstream.backends.torch.runner import TorchRunner  # noqa: E402
from slipstream.model.config import SamplingConfig, STTConfig  # noqa: E402
from slipstream.nn.build import build_codec, build_lm, to_tensor  # noqa: E402


def make(config: STTConfig | None = None, **options) -> TorchRunner:
    config = config or stt_config()
    lm, codec = random_model(config)
    return TorchRunner(config, build_codec(config.codec, codec), build_lm(config.lm, lm), **options)


def tokens(runner: TorchRunner, frames: int = 15) -> list[int]:
    audio = noise_and_tones(frames * 0.08).reshape(frames, 1, 1920)
    return [int(runner.step(frame, np.array([True])).token_B[0]) for frame in audio]


def test_sampling_is_seeded_and_top_1_is_greedy():
    warm = SamplingConfig(temperature=1.5)
    assert tokens(make(sampling=warm, seed=1)) == tokens(make(sampling=warm, seed=1))
    assert tokens(make(sampling=warm, seed=1)) != tokens(make(sampling=warm, seed=2))
    assert tokens(make(sampling=SamplingConfig(temperature=1.5, top_k=1), seed=1)) == tokens(make())


def test_condition_values_change_the_text():
    config = stt_config()
    half, four = (config.model_copy(update={"condition_values": {"delay": d}}) for d in (0.5, 4.0))
    assert tokens(make(half)) != tokens(make(four))


def test_runners_over_the_same_modules_do_not_touch_each_other():
    config = stt_config()
    lm_weights, codec_weights = random_model(config)
    codec, lm = build_codec(config.codec, codec_weights), build_lm(config.lm, lm_weights)
    first, second = (TorchRunner(config, codec, lm) for _ in range(2))
    expected = tokens(TorchRunner(config, codec, lm))
    tokens(second)
    assert tokens(first) == expected


def test_a_runner_without_slots_is_refused():
    with pytest.raises(ValueError, match="slots=0"):
        make(slots=0)


def test_read_only_and_bfloat16_arrays_become_tensors():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    array.flags.writeable = False
    assert to_tensor(array).tolist() == array.tolist()
    ml_dtypes = pytest.importorskip("ml_dtypes")
    tensor = to_tensor(np.array([1.5, -2.0], dtype=ml_dtypes.bfloat16))
    assert tensor.dtype == torch.bfloat16
    assert tensor.tolist() == [1.5, -2.0]
