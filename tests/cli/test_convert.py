"""`slipstream convert`: a checkpoint into another layout."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import Outcome
from tests.fakes import tiny_tokenizer, tokenizer_path
from tests.models import load_checkpoint, random_model, stt_config

from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = stt_config(text_vocab=tiny_tokenizer().vocab_size)
    folder = tmp_path_factory.mktemp("checkpoint") / "kyutai"
    save_checkpoint(Checkpoint(config, *random_model(config), tokenizer=tokenizer_path()), folder, "kyutai")
    return folder


def test_converts_and_keeps_the_weights(cli: Cli, source: Path, tmp_path: Path) -> None:
    outcome = cli("convert", source, tmp_path / "mlx", "--layout", "mlx")
    assert outcome.code == 0, outcome.err
    assert "in the layout mlx" in outcome.err
    before, after = load_checkpoint(source), load_checkpoint(tmp_path / "mlx")
    for name, array in before.lm.items():
        np.testing.assert_array_equal(after.lm[name], array)


def test_quantises(cli: Cli, source: Path, tmp_path: Path) -> None:
    outcome = cli("convert", source, tmp_path / "onnx", "--layout", "onnx", "--quantize", "int8")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "onnx" / "lm.onnx").exists()


def test_quantises_to_few_bits_in_kyutais_layout_only(cli: Cli, source: Path, tmp_path: Path) -> None:
    outcome = cli("convert", source, tmp_path / "5", "--quantize", "int5")
    assert outcome.code == 0, outcome.err
    packed, floats = ((folder / "model.safetensors").stat().st_size for folder in (tmp_path / "5", source))
    assert packed < floats / 2
    outcome = cli("convert", source, tmp_path / "mlx", "--layout", "mlx", "--quantize", "int5")
    assert outcome.code == 1
    assert "the layout mlx has 4, 8" in outcome.err
    outcome = cli("convert", source, tmp_path / "onnx", "--layout", "onnx", "--quantize", "int5")
    assert outcome.code == 2
    assert "int4 and int8" in outcome.err


@pytest.mark.parametrize("layout", ["kyutai", "onnx"])
def test_a_tokenizer_that_is_none_is_named(cli: Cli, source: Path, tmp_path: Path, layout: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    (tokenizer,) = broken.glob("*.model")
    tokenizer.write_bytes(b"")
    outcome = cli("convert", broken, tmp_path / "out", "--layout", layout)
    assert outcome.code == 1
    assert f"{tokenizer}: not a SentencePiece model" in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_not_changed(cli: Cli, source: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in source.iterdir()}
    for layout in ("kyutai", "onnx"):
        outcome = cli("convert", source, source, "--layout", layout)
        assert outcome.code == 1
        assert "choose a new one" in outcome.err
    assert {path: path.stat().st_mtime_ns for path in source.iterdir()} == before


def test_onnx_refuses_dtype(cli: Cli, source: Path, tmp_path: Path) -> None:
    outcome = cli("convert", source, tmp_path / "onnx", "--layout", "onnx", "--dtype", "bfloat16")
    assert outcome.code == 2
    assert "float32 or quantised" in outcome.err
