"""Models by name: every backend from the same folder, and errors that say what to do."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import tokenizer_path
from tests.models import noise_and_tones, random_model, stt_config

from slipstream import loading
from slipstream.config import SamplingConfig
from slipstream.errors import BackendError, CheckpointError, ConfigError
from slipstream.weights.checkpoint import Checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = stt_config()
    lm, codec = random_model(config)
    path = tmp_path_factory.mktemp("model")
    save_checkpoint(Checkpoint(config, lm, codec, tokenizer_path()), path, "kyutai")
    return path


def said(runner, frames: int = 12) -> list[int]:
    audio = noise_and_tones(frames * 0.08).reshape(frames, 1, 1920)
    return [int(runner.step(frame, np.array([True])).token_B[0]) for frame in audio]


def test_every_backend_says_the_same_of_the_same_folder(folder: Path):
    pytest.importorskip("torch", reason="pip install 'slipstream-stt[torch]'")
    expected = said(loading.load_runner(folder))
    assert len(set(expected)) > 3
    assert said(loading.load_runner(folder, backend="onnx")) == expected
    if loading.has("mlx"):
        assert said(loading.load_runner(folder, backend="mlx")) == expected


@pytest.mark.skipif(not loading.has("mlx"), reason="pip install 'slipstream-stt[mlx]'")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_checkpoint_stays_so_on_mlx(bits: int, tmp_path: Path):
    whole_groups = {"dim": 64, "num_heads": 2, "ffn_dim": 64}
    config = stt_config(transformer=stt_config().lm.transformer.model_copy(update=whole_groups), conditioners=())
    lm, codec = random_model(config)
    save_checkpoint(Checkpoint(config, lm, codec, tokenizer_path()), tmp_path / "q", "mlx", quantize=bits)
    weight = loading.load_runner(tmp_path / "q", backend="mlx").lm.text_linear
    assert weight.bits == bits


def test_slots_sampling_and_seed_reach_the_runner(folder: Path):
    warm = SamplingConfig(temperature=1.5)
    runner = loading.load_runner(folder, backend="onnx", slots=3)
    assert runner.slots == 3
    first, again, other = (
        said(loading.load_runner(folder, backend="onnx", sampling=warm, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_large_model_on_the_cpu_is_converted_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "QUANTIZE_ABOVE", 1000)
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path))
    seen: list[tuple[int, int]] = []
    tokens = said(loading.load_runner(folder, backend="onnx", progress=lambda *done: seen.append(done)))
    assert seen
    assert seen[-1][0] == seen[-1][1]
    (converted,) = (tmp_path / "onnx").glob("[!.]*-int8")
    monkeypatch.setattr(loading, "load_checkpoint", lambda *a, **k: pytest.fail("the tensors were read again"))
    assert said(loading.load_runner(folder, backend="onnx")) == tokens
    assert said(loading.load_runner(converted, backend="onnx")) == tokens
    with pytest.raises(ConfigError, match="converted already"):
        loading.load_runner(converted, backend="onnx", quantize="int4")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "tensorflow"}, ConfigError, "expected auto, torch, onnx, mlx"),
        ({"backend": "onnx", "device": "cuda"}, BackendError, "use backend='torch' for CUDA"),
        ({"backend": "onnx", "dtype": "bfloat16"}, ConfigError, "quantize='int8'"),
        ({"backend": "torch", "dtype": "float64"}, ConfigError, "float32 or bfloat16"),
        ({"backend": "torch", "quantize": "int4"}, ConfigError, "does not quantise; onnx and mlx do"),
        ({"backend": "onnx", "quantize": "int2"}, ConfigError, "expected int8, int4 or none"),
        ({"backend": "torch", "device": "cuda:7"}, BackendError, "cuda:7"),
        ({"backend": "auto", "device": "tpu"}, BackendError, "expected auto, cpu, gpu"),
        ({"slots": 0, "backend": "onnx"}, ValueError, "slots=0"),
    ],
)
def test_settings_that_cannot_be_had_are_named(folder: Path, options: dict, error: type[Exception], message: str):
    if options.get("backend") == "torch":
        torch = pytest.importorskip("torch", reason="pip install 'slipstream-stt[torch]'")
        if torch.cuda.is_available() and "cuda" in str(options.get("device")):
            pytest.skip("this machine has CUDA")
    with pytest.raises(error, match=message):
        loading.load_runner(folder, **options)


def test_a_backend_that_is_not_installed_names_its_command(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "has", lambda backend: False)
    with pytest.raises(BackendError, match=r"pip install 'slipstream-stt\[torch\]'"):
        loading.load_runner(folder, backend="torch")


def test_a_model_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises((CheckpointError, ConfigError), match="nowhere"):
        loading.load_runner(tmp_path / "nowhere", backend="onnx")


@pytest.mark.parametrize(
    ("device", "installed", "machine", "expected"),
    [
        ("auto", (), ("Linux", "x86_64"), ("onnx", "cpu")),
        ("auto", ("mlx",), ("Darwin", "arm64"), ("mlx", "gpu")),
        ("auto", ("mlx",), ("Linux", "x86_64"), ("onnx", "cpu")),
        ("cpu", ("torch", "mlx"), ("Darwin", "arm64"), ("onnx", "cpu")),
        ("cuda:1", ("torch",), ("Linux", "x86_64"), ("torch", "cuda:1")),
        ("gpu", ("mlx",), ("Darwin", "arm64"), ("mlx", "gpu")),
    ],
)
def test_the_device_chooses_the_backend(device, installed, machine, expected, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "has", lambda backend: backend in installed)
    monkeypatch.setattr(platform, "system", lambda: machine[0])
    monkeypatch.setattr(platform, "machine", lambda: machine[1])
    assert loading.choose(device) == expected
