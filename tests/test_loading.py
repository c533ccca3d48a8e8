"""Models by name: every backend reads the same folder, and errors give the remedy."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import tokenizer_path
from tests.models import noise_and_tones, random_model, stt_config
from typer.testing import CliRunner

from slipstream import bundle, loading
from slipstream.backends import choice
from slipstream.backends.onnx import opening
from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint
from slipstream.cli.app import app
from slipstream.errors import BackendError, CheckpointError, ConfigError
from slipstream.model.config import SamplingConfig
from slipstream.model.text import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = stt_config()
    lm, codec = random_model(config)
    path = tmp_path_factory.mktemp("model")
    save_checkpoint(Checkpoint(config, lm, codec, tokenizer_path()), path, "kyutai")
    return path


def tokens(runner, frames: int = 12) -> list[int]:
    audio = noise_and_tones(frames * 0.08).reshape(frames, 1, 1920)
    return [int(runner.step(frame, np.array([True])).token_B[0]) for frame in audio]


def test_every_backend_writes_the_same_tokens_from_the_same_folder(folder: Path):
    pytest.importorskip("torch", reason="pip install 'slipstream-stt[torch]'")
    expected = tokens(loading.load_runner(folder, backend="torch", device="cpu"))
    assert len(set(expected)) > 3
    assert tokens(loading.load_runner(folder, backend="onnx")) == expected
    if choice.has("mlx"):
        assert tokens(loading.load_runner(folder, backend="mlx", dtype="float32")) == expected


def test_every_backend_reads_8_bit_weights_of_a_whisper_encoder(tmp_path: Path):
    pytest.importorskip("torch", reason="pip install 'slipstream-stt[torch]'")
    config = stt_config(codec="whisper")
    save_checkpoint(Checkpoint(config, *random_model(config), tokenizer_path()), tmp_path / "8", "kyutai", quantize=8)
    expected = tokens(loading.load_runner(tmp_path / "8", backend="torch", device="cpu"))
    assert len(set(expected)) > 3
    assert tokens(loading.load_runner(tmp_path / "8", backend="onnx", quantize="none")) == expected
    if choice.has("mlx"):
        assert tokens(loading.load_runner(tmp_path / "8", backend="mlx", dtype="float32")) == expected


def test_a_whisper_encoder_runs_in_8_bits_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str | None] = []
    monkeypatch.setattr(opening, "OnnxRunner", lambda *a, quantize, **k: asked.append(quantize))
    for codec in ("waveform", "whisper"):
        config = stt_config(codec=codec)
        save_checkpoint(Checkpoint(config, *random_model(config), tokenizer_path()), tmp_path / codec, "kyutai")
        for quantize in (None, "none", "int4"):
            loading.load_runner(tmp_path / codec, backend="onnx", quantize=quantize)
    assert asked == [None, None, "int4", "int8", None, "int4"]


@pytest.mark.skipif(not choice.has("mlx"), reason="pip install 'slipstream-stt[mlx]'")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_checkpoint_stays_quantised_on_mlx(bits: int, tmp_path: Path):
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
        tokens(loading.load_runner(folder, backend="onnx", sampling=warm, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_large_model_on_the_cpu_is_converted_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(opening, "QUANTIZE_ABOVE", 1000)
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path))
    seen: list[tuple[int, int]] = []
    first = tokens(loading.load_runner(folder, backend="onnx", progress=lambda *done: seen.append(done)))
    assert seen
    assert seen[-1][0] == seen[-1][1]
    (converted,) = (tmp_path / "onnx").glob("[!.]*-int8")
    monkeypatch.setattr(bundle, "read_checkpoint", lambda *a, **k: pytest.fail("the tensors were read again"))
    assert tokens(loading.load_runner(folder, backend="onnx")) == first
    assert tokens(loading.load_runner(converted, backend="onnx")) == first
    with pytest.raises(ConfigError, match="converted already"):
        loading.load_runner(converted, backend="onnx", quantize="int4")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "tensorflow"}, ConfigError, "expected auto, onnx, torch, mlx"),
        ({"backend": "onnx", "device": "cuda"}, BackendError, "the onnx backend has no cuda; use backend='torch'"),
        ({"backend": "onnx", "device": "gpu"}, BackendError, "with backend='onnx': not on this machine; available: "),
        ({"backend": "onnx", "dtype": "bfloat16"}, ConfigError, "quantize='int8'"),
        ({"backend": "torch", "dtype": "float64"}, ConfigError, "float32 or bfloat16"),
        ({"backend": "torch", "quantize": "int4"}, ConfigError, "torch backend has int8, fp8 and none"),
        ({"backend": "onnx", "quantize": "fp8"}, ConfigError, "only the torch backend has it, not onnx"),
        ({"backend": "onnx", "quantize": "int2"}, ConfigError, "expected int8, fp8, int4 or none"),
        ({"backend": "torch", "device": "cuda:7"}, BackendError, "cuda:7"),
        ({"backend": "auto", "device": "tpu"}, BackendError, "expected auto, cpu, gpu"),
        ({"slots": 0, "backend": "onnx"}, ValueError, "slots=0"),
    ],
)
def test_invalid_settings_are_named(folder: Path, options: dict, error: type[Exception], message: str):
    if options.get("backend") == "torch":
        torch = pytest.importorskip("torch", reason="pip install 'slipstream-stt[torch]'")
        if torch.cuda.is_available() and "cuda" in str(options.get("device")):
            pytest.skip("this machine has CUDA")
    with pytest.raises(error, match=message):
        loading.load_runner(folder, **options)


def test_a_backend_that_is_not_installed_names_its_command(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choice, "has", lambda backend: False)
    with pytest.raises(BackendError, match=r"pip install 'slipstream-stt\[torch\]'"):
        loading.load_runner(folder, backend="torch")


def test_a_model_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises((CheckpointError, ConfigError), match="nowhere"):
        loading.load_runner(tmp_path / "nowhere", backend="onnx")


def test_load_and_load_runner_share_their_defaults():
    load, load_runner = (inspect.signature(function).parameters for function in (loading.load, loading.load_runner))
    shared = load.keys() & load_runner.keys()
    assert shared >= {"device", "backend", "slots", "dtype", "quantize", "threads", "progress", "origin"}
    for name in shared:
        assert load[name].default == load_runner[name].default, name


@pytest.mark.parametrize("command", [["serve", "--port", "0", "--model"], ["evaluate", "MANIFEST", "--model"]])
def test_commands_refuse_a_tokenizer_of_another_model(tmp_path: Path, command: list[str]):
    pytest.importorskip("jiwer", reason="pip install 'slipstream-stt[eval]'")
    config = stt_config(text_vocab=Tokenizer(tokenizer_path()).vocab_size + 1)
    save_checkpoint(Checkpoint(config, *random_model(config), tokenizer_path()), tmp_path / "model", "kyutai")
    (tmp_path / "all.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "good morning"}))
    arguments = [str(tmp_path / "all.jsonl") if part == "MANIFEST" else part for part in command]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "model")])
    assert isinstance(result.exception, CheckpointError)
    assert "the tokenizer belongs to another model" in str(result.exception)
