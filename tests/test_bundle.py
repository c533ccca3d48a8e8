"""A bundle: resolved once from a folder, a bundle or a Rust server's TOML, with the model's own defaults."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.checkpoints.test_rust import PUBLISHED
from tests.fakes import tiny_tokenizer, tokenizer_path
from tests.models import noise_and_tones, random_model, stt_config

from slipstream import load, load_runner
from slipstream.bundle import ModelBundle
from slipstream.checkpoints import checkpoint
from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint
from slipstream.checkpoints.presets import PRESETS
from slipstream.checkpoints.rust import read_rust_config
from slipstream.checkpoints.tensors import write_tensors
from slipstream.engine.turns import TurnOptions
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.confidence import Calibration, Curve
from slipstream.model.config import CodecConfig, SamplingConfig, STTConfig

CALIBRATION = Calibration(word=Curve(nats=(0.0, 1.0), probability=(0.9, 0.2)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = stt_config(text_vocab=tiny_tokenizer().vocab_size).model_copy(
        update={"silence_prefix_seconds": 1.0, "end_of_turn_above": 0.85, "confidence": CALIBRATION}
    )
    path = tmp_path_factory.mktemp("model")
    save_checkpoint(Checkpoint(config, *random_model(config), tokenizer_path()), path, "kyutai")
    return path


@pytest.mark.parametrize("backend", ["torch", "onnx", "mlx"])
def test_every_backend_runs_weights_in_5_bits_as_their_floats(backend: str, tmp_path: Path) -> None:
    pytest.importorskip({"torch": "torch", "onnx": "onnxruntime", "mlx": "mlx.core"}[backend])
    config = stt_config(codec="whisper", decoder=True, text_vocab=tiny_tokenizer().vocab_size)
    save_checkpoint(Checkpoint(config, *random_model(config), tokenizer_path()), tmp_path / "5", "kyutai", quantize=5)
    save_checkpoint(ModelBundle.resolve(tmp_path / "5").checkpoint(), tmp_path / "floats", "kyutai")
    bundles = [ModelBundle.resolve(tmp_path / name) for name in ("5", "floats")]
    runners = [bundle.open(device="cpu", backend=backend) for bundle in bundles]
    for frame_BS in noise_and_tones(8 * 0.08, seed=0).reshape(8, 1, 1920):
        found, same = (runner.step(frame_BS, np.array([True])) for runner in runners)
        assert np.isfinite(found.logprob_B).all()
        np.testing.assert_array_equal(found.token_B, same.token_B)
        np.testing.assert_allclose(found.logprob_B, same.logprob_B, atol=1e-5)


@pytest.fixture
def rust_toml(tmp_path: Path) -> Path:
    """The published TOML, with files in a local folder."""
    for name in ("model.safetensors", "tokenizer_en_fr_audio_8000.model", "mimi-pytorch-e351c8d8@125.safetensors"):
        (tmp_path / name).write_bytes(b"")
    heads = {f"extra_heads.{k}.weight": np.zeros((6, 2048), np.float32) for k in range(4)}
    write_tensors(tmp_path / "model.safetensors", heads)
    file = tmp_path / "config.toml"
    file.write_text(PUBLISHED.replace("hf://kyutai/stt-1b-en_fr-candle", str(tmp_path)))
    return file


def test_a_folder_gives_the_models_own_defaults(folder: Path) -> None:
    bundle = ModelBundle.resolve(folder)
    assert bundle.name == str(folder)
    assert bundle.tokenizer.vocab_size == bundle.config.lm.text_vocab
    stream = bundle.stream_format()
    assert (stream.frame_samples, stream.frame_rate, stream.silence_frames) == (1920, 12.5, 13)
    assert stream.delay_frames == bundle.config.delay_frames
    assert stream.turns == bundle.turns == TurnOptions.of(bundle.config)
    assert bundle.turns.end_above == 0.85
    assert stream.calibration == CALIBRATION


def test_an_uncalibrated_model_is_otherwise_equal(folder: Path) -> None:
    bundle = ModelBundle.resolve(folder)
    plain = bundle.uncalibrated()
    assert plain.stream_format().calibration is None
    assert plain.config.model_copy(update={"confidence": CALIBRATION}) == bundle.config
    assert plain.sources.lm == bundle.sources.lm


def test_engine_transcriber_and_stream_format_agree(folder: Path) -> None:
    bundle = ModelBundle.resolve(folder)
    with bundle.engine(bundle.open(backend="onnx")) as engine, load(bundle, backend="onnx") as transcriber:
        assert engine.format == transcriber.engine.format == bundle.stream_format()
        assert transcriber.model == str(folder)


def test_a_bundle_is_resolved_once(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = ModelBundle.resolve(folder)
    for module in ("slipstream.bundle", "slipstream.checkpoints.checkpoint"):
        monkeypatch.setattr(f"{module}.resolve", lambda *a, **k: pytest.fail("the model was resolved again"))
    assert ModelBundle.resolve(bundle) is bundle
    assert load_runner(bundle, backend="onnx", slots=2).slots == 2
    checkpoint.convert(bundle.sources, tmp_path / "mlx", "mlx")
    assert (tmp_path / "mlx" / "config.json").is_file()
    with pytest.raises(ConfigError, match="tokenizer: the parts of a resolved model"):
        ModelBundle.resolve(bundle, tokenizer="other.model")


def test_a_tokenizer_of_another_model_is_refused_before_the_weights_are_read(tmp_path: Path) -> None:
    config = stt_config(text_vocab=tiny_tokenizer().vocab_size + 1)
    save_checkpoint(Checkpoint(config, *random_model(config), tokenizer_path()), tmp_path / "model", "kyutai")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x" * 100)
    bundle = ModelBundle.resolve(tmp_path / "model", lm=shutil.copyfile(tokenizer_path(), tmp_path / "lm.bin"))
    with pytest.raises(CheckpointError, match="the tokenizer belongs to another model"):
        bundle.open(backend="onnx")


def test_a_rust_toml_becomes_a_bundle(rust_toml: Path) -> None:
    bundle = ModelBundle.resolve(rust_toml)
    expected = STTConfig(
        codec=CodecConfig(),
        lm=PRESETS["kyutai/stt-1b-en_fr-candle"].lm,
        delay_seconds=0.48,
        delay_frames=6,
        sampling=SamplingConfig(temperature=0.25),
    )
    assert bundle.config == expected
    assert bundle.sources.lm == (rust_toml.parent / "model.safetensors",)
    assert bundle.sources.tokenizer.name == "tokenizer_en_fr_audio_8000.model"
    assert bundle.dtype == "auto"
    assert bundle == ModelBundle.of_rust(read_rust_config(rust_toml))
    assert not list(rust_toml.parent.rglob("config.json"))
    with pytest.raises(ConfigError, match="lm: the parts of"):
        ModelBundle.resolve(rust_toml, lm="other")


def test_files_of_a_rust_toml_that_do_not_exist_are_named(rust_toml: Path) -> None:
    (rust_toml.parent / "tokenizer_en_fr_audio_8000.model").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer_en_fr_audio_8000\.model: no such file"):
        ModelBundle.resolve(rust_toml)


def test_a_dtype_that_the_backend_lacks_is_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = ModelBundle("stt", ModelBundle.resolve(folder).sources, dtype="bfloat16")
    bundle.open(backend="onnx")
    assert "stt asks for bfloat16, which the onnx backend does not have" in caplog.text
