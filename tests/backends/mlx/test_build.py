"""Weights into modules: types, quantisation on load, and matrices that are quantised already."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core", reason="MLX is not installed: pip install 'slipstream-stt[mlx]'")

from mlx.utils import tree_flatten  # noqa: E402
from tests.models import codec_config, lm_config, load_checkpoint, random_model, random_weights, stt_config  # noqa: E402

import slipstream.backends.mlx  # noqa: E402
from slipstream.backends.mlx.build import build_codec, build_lm  # noqa: E402
from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from slipstream.checkpoints.mlx import lm_table, packed_table, quantized  # noqa: E402
from slipstream.errors import CheckpointError, ConfigError  # noqa: E402
from slipstream.model.config import ConditionerConfig, LMConfig  # noqa: E402
from slipstream.model.names import codec_shapes, lm_shapes  # noqa: E402

WIDE = lm_config().transformer.model_copy(update={"dim": 128, "num_heads": 4, "ffn_dim": 192})


def wide(**changes) -> LMConfig:
    return lm_config(**({"transformer": WIDE, "conditioners": ()} | changes))


def parameters(module) -> dict:
    return dict(tree_flatten(module.parameters()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_file_stays_so_and_is_what_quantising_on_load_makes(bits: int, dtype: str, tmp_path: Path):
    config = stt_config(transformer=WIDE, conditioners=())
    lm, codec = random_weights(lm_shapes(config.lm)), random_weights(codec_shapes(config.codec))
    (tmp_path / "spm.model").write_bytes(b"")
    checkpoint = Checkpoint(config, lm, codec, tmp_path / "spm.model")
    save_checkpoint(checkpoint, tmp_path / "saved", "mlx", quantize=bits, dtype=dtype)
    loaded = load_checkpoint(tmp_path / "saved", keep_quantized=True)
    kept = parameters(build_lm(loaded.config.lm, loaded.lm, dtype=dtype))
    on_load = parameters(build_lm(config.lm, lm, dtype=dtype, quantize=bits))
    assert kept.keys() == on_load.keys()
    assert all(mx.array_equal(kept[name], on_load[name]) for name in kept)
    assert kept["text_linear.weight"].dtype == mx.uint32
    assert sum(array.nbytes for array in kept.values()) < 0.3 * sum(array.nbytes for array in lm.values())
    again = build_lm(loaded.config.lm, loaded.lm, dtype=dtype, quantize=bits)
    assert mx.array_equal(again.text_linear.weight, kept["text_linear.weight"])


def test_a_quantised_file_becomes_floats_by_default(tmp_path: Path):
    config = wide()
    file = quantized(lm_table(config).write(random_weights(lm_shapes(config))), 8)
    assert lm_table(config).read(file, "file")["text_linear.weight"].dtype == np.float32


@pytest.mark.parametrize("bits", [5, 8])
def test_a_decoder_in_few_bits_becomes_floats(bits: int, tmp_path: Path):
    config = stt_config(codec="whisper", decoder=True)
    lm, codec = random_model(config)
    (tmp_path / "spm.model").write_bytes(b"")
    save_checkpoint(Checkpoint(config, lm, codec, tmp_path / "spm.model"), tmp_path / "saved", "kyutai", quantize=bits)
    loaded = load_checkpoint(tmp_path / "saved", keep_quantized=True)
    assert loaded.config.lm == config.lm
    built = parameters(build_lm(loaded.config.lm, loaded.lm))
    assert built.keys() == parameters(build_lm(config.lm, lm)).keys()
    for name in ("positions", "layers.1.age", "layers.1.prefix", "layers.1.cross.v_proj.weight"):
        found, exact = np.array(built[f"transformer.{name}"]), lm[f"transformer.{name}"]
        assert found.dtype == np.float32
        assert np.abs(found - exact).max() <= np.abs(exact).max() * 1.3 / 2**bits
    assert (found != exact).any()


def test_a_damaged_quantised_file_is_reported():
    config = wide()
    file = quantized(lm_table(config).write(random_weights(lm_shapes(config))), 4)
    file["audio_embs.2.scales"] = file["audio_embs.2.scales"][:, :1]
    file["text_linear.scales"] = file["text_linear.scales"][:-1]
    del file["text_emb.biases"]
    with pytest.raises(CheckpointError) as caught:
        packed_table(config, file).read(file, "file")
    for name in ("audio_embs.2.scales", "text_linear.weight", "text_emb.scales"):
        assert name in str(caught.value)


def test_rows_that_are_not_whole_groups_stay_floats():
    config = wide(
        conditioners=(ConditionerConfig(name="delay", kind="continuous", dim=8),),
        transformer=WIDE.model_copy(update={"ffn_dim": 100}),
    )
    built = parameters(build_lm(config, random_weights(lm_shapes(config)), quantize=8))
    assert built["conditioners.delay.output_proj.weight"].dtype == mx.float32
    assert built["transformer.layers.0.ffn.linear_out.weight"].dtype == mx.float32
    assert built["transformer.layers.0.ffn.linear_in.weight"].dtype == mx.uint32


def test_unsupported_settings_are_refused():
    config = lm_config()
    weights = random_weights(lm_shapes(config))
    with pytest.raises(ConfigError, match="float32 and bfloat16"):
        build_lm(config, weights, dtype="float16")
    with pytest.raises(ConfigError, match="4 or 8 bits"):
        build_lm(config, weights, quantize=3)


def test_a_file_of_other_bits_than_asked_for_is_refused():
    config = wide()
    file = quantized(lm_table(config).write(random_weights(lm_shapes(config))), 8)
    packed = packed_table(config, file).read(file, "file")
    with pytest.raises(ConfigError, match="quantize=4: these weights are in 8 bits already"):
        build_lm(config, packed, quantize=4)


def test_missing_tensors_are_named():
    lm = random_weights(lm_shapes(lm_config()))
    del lm["out_norm.weight"]
    with pytest.raises(ValueError, match=r"out_norm\.weight"):
        build_lm(lm_config(), lm)
    codec = random_weights(codec_shapes(codec_config()))
    del codec["encoder.stages.1.resample.bias"]
    with pytest.raises(ValueError, match=r"encoder\.stages\.1\.resample\.bias"):
        build_codec(codec_config(), codec)


def test_float32_is_float32_unless_the_user_chooses_another_type(monkeypatch):
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    importlib.reload(slipstream.backends.mlx)
    assert os.environ["MLX_ENABLE_TF32"] == "0"
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")
    importlib.reload(slipstream.backends.mlx)
    assert os.environ["MLX_ENABLE_TF32"] == "1"
