"""Checkpoints between ours and the `moshi_mlx` package, and quantisation against MLX itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.models import codec_config, lm_config, load_checkpoint, random_model, stt_config

from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint
from slipstream.checkpoints.quantization import GROUP_SIZES, dequantize, quantize
from slipstream.model.config import ConditionerConfig, STTConfig

mx = pytest.importorskip("mlx.core", reason="MLX is not installed: `make oracles` installs it")
nn = pytest.importorskip("mlx.nn")
pytest.importorskip("moshi_mlx", reason="the reference package moshi_mlx is not installed: `make oracles` installs it")

import moshi_mlx.models  # noqa: E402
from moshi_mlx.models.mimi import Mimi, MimiConfig  # noqa: E402
from moshi_mlx.modules import SeanetConfig, TransformerConfig  # noqa: E402

CONDITIONERS = (ConditionerConfig(name="control", kind="lut", dim=64, num_bins=4, possible_values=("good", "bad")),)
# Its loader takes a feed-forward width of 11/4 of the model's for granted.
ODD = lm_config().transformer.model_copy(update={"dim": 36, "ffn_dim": 99})
WIDE = ODD.model_copy(update={"dim": 256, "num_heads": 4, "ffn_dim": 704})
CONFIGS = {
    "odd": stt_config(transformer=ODD, conditioners=()),
    "wide": stt_config(transformer=WIDE, conditioners=CONDITIONERS),
}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def to_mlx(array: np.ndarray) -> Any:
    return mx.array(array.astype(np.float32)).astype(getattr(mx, array.dtype.name))


def to_numpy(array: Any) -> np.ndarray:
    return np.array(array if array.dtype == mx.uint32 else array.astype(mx.float32))


def made(config: STTConfig, folder: Path) -> Checkpoint:
    lm, codec = random_model(config)
    tokenizer = folder / "spm.model"
    tokenizer.write_bytes(b"")
    lm = {name: array.astype(ml_dtypes.bfloat16) for name, array in lm.items()}
    return Checkpoint(config, lm, codec, tokenizer)


def their_lm(folder: Path, quantize: int | None = None) -> Any:
    """Their model for a folder's configuration, made ready for weights as their scripts make it."""
    config = moshi_mlx.models.LmConfig.from_config_dict(json.loads((folder / "config.json").read_text()))
    model = moshi_mlx.models.Lm(config)
    model.set_dtype(mx.bfloat16)
    if quantize:
        nn.quantize(model, bits=quantize, group_size=GROUP_SIZES[quantize])
    return model


# ------------------------------------------------------------------------------------------------------- quantisation


@pytest.mark.parametrize("bits", sorted(GROUP_SIZES))
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kind", ["normal", "of one sign", "zeros", "with outliers", "constant groups"])
def test_quantisation_is_mlxs_bit_for_bit(bits: int, dtype: type, kind: str) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((40, 256))
    matrix = {
        "normal": matrix,
        "of one sign": np.abs(matrix) + 1,
        "zeros": matrix * (rng.random(matrix.shape) < 0.02),
        "with outliers": matrix * np.exp(1.5 * rng.standard_normal(matrix.shape)),
        "constant groups": np.repeat(matrix[:, ::64], 64, axis=1),
    }[kind].astype(dtype)
    ours = quantize(matrix, bits)
    theirs = mx.quantize(to_mlx(matrix), group_size=GROUP_SIZES[bits], bits=bits)
    for our_part, their_part in zip(ours, theirs, strict=True):
        assert np.array_equal(our_part.astype(to_numpy(their_part).dtype), to_numpy(their_part))
    back = mx.dequantize(*theirs, group_size=GROUP_SIZES[bits], bits=bits)
    assert np.array_equal(dequantize(ours, 256).astype(np.float32), to_numpy(back))


# ----------------------------------------------------------------------------------------------------------- moshi_mlx


@pytest.mark.parametrize(("name", "bits"), [("odd", None), ("wide", None), ("wide", 8), ("wide", 4)])
def test_its_loader_reads_our_files(name: str, bits: int | None, tmp_path: Path) -> None:
    checkpoint = made(CONFIGS[name], tmp_path)
    save_checkpoint(checkpoint, tmp_path / "saved", "mlx", quantize=bits)
    raw = json.loads((tmp_path / "saved" / "config.json").read_text())
    model = their_lm(tmp_path / "saved", bits)
    model.load_weights(str(tmp_path / "saved" / raw["moshi_name"]), strict=True)
    layer = model.transformer.layers[1].self_attn.in_proj
    expected = checkpoint.lm["transformer.layers.1.attn.in_proj.weight"].astype(np.float32)
    x = np.random.default_rng(0).standard_normal((3, expected.shape[1])).astype(np.float32)
    tolerance = {None: 0.02, 8: 0.03, 4: 0.3}[bits]
    np.testing.assert_allclose(
        to_numpy(layer(mx.array(x))), x @ expected.T, atol=tolerance * np.abs(x @ expected.T).max()
    )
    embedded = to_numpy(model.audio_embs[2](mx.array([7])))
    np.testing.assert_allclose(embedded[0], checkpoint.lm["audio_emb.weight"][2, 7].astype(np.float32), atol=tolerance)


@pytest.mark.parametrize(("name", "bits"), [("odd", None), ("wide", None), ("wide", 8), ("wide", 4)])
def test_we_read_what_it_saves(name: str, bits: int | None, tmp_path: Path) -> None:
    config = CONFIGS[name]
    save_checkpoint(made(config, tmp_path), tmp_path / "saved", "mlx", quantize=bits)
    raw = json.loads((tmp_path / "saved" / "config.json").read_text())
    mx.random.seed(0)
    model = their_lm(tmp_path / "saved", bits)
    model.save_weights(str(tmp_path / "saved" / raw["moshi_name"]))
    loaded = load_checkpoint(tmp_path / "saved").lm
    assert {array.dtype.name for array in loaded.values()} == {"bfloat16"}

    def matrix(layer: Any) -> np.ndarray:
        if bits is None:
            return to_numpy(layer.weight)
        return to_numpy(
            mx.dequantize(layer.weight, layer.scales, layer.biases, group_size=layer.group_size, bits=layer.bits)
        )

    for ours, theirs in [
        ("text_emb.weight", matrix(model.text_emb)),
        ("audio_emb.weight", np.stack([matrix(book) for book in model.audio_embs])),
        ("transformer.layers.1.ffn.linear_in.weight", matrix(model.transformer.layers[1].gating.linear_in)),
        ("transformer.layers.0.norm2.weight", to_numpy(model.transformer.layers[0].norm2.weight)),
        ("pause_heads.weight", np.stack([matrix(head) for head in model.extra_heads])),
        ("out_norm.weight", to_numpy(model.out_norm.weight)),
    ]:
        assert np.array_equal(loaded[ours].astype(np.float32), theirs), ours


@pytest.mark.parametrize("name", CONFIGS)
def test_its_importer_of_pytorch_files_reads_kyutais_layout(name: str, tmp_path: Path) -> None:
    checkpoint = made(CONFIGS[name], tmp_path)
    save_checkpoint(checkpoint, tmp_path / "saved", "kyutai")
    model = their_lm(tmp_path / "saved")
    model.load_pytorch_weights(str(tmp_path / "saved" / "model.safetensors"), model.cfg, strict=True)
    linear = to_numpy(model.transformer.layers[1].gating.linear_out.weight)
    assert np.array_equal(linear, checkpoint.lm["transformer.layers.1.ffn.linear_out.weight"].astype(np.float32))


def test_its_codec_reads_the_file_next_to_the_lm(tmp_path: Path) -> None:
    config = codec_config()
    checkpoint = made(CONFIGS["odd"], tmp_path)
    save_checkpoint(checkpoint, tmp_path / "saved", "mlx")
    mimi = Mimi(
        MimiConfig(
            channels=1,
            sample_rate=config.sample_rate,
            frame_rate=config.frame_rate,
            renormalize=True,
            seanet=SeanetConfig(
                dimension=config.dim,
                channels=1,
                causal=True,
                nfilters=config.num_filters,
                nresidual_layers=1,
                ratios=list(config.ratios),
                ksize=config.kernel_size,
                residual_ksize=config.residual_kernel_size,
                last_ksize=config.last_kernel_size,
                dilation_base=config.dilation_base,
                pad_mode="constant",
                true_skip=True,
                compress=config.compress,
            ),
            transformer=TransformerConfig(
                d_model=config.dim,
                num_heads=config.transformer.num_heads,
                num_layers=config.transformer.num_layers,
                dim_feedforward=config.transformer.ffn_dim,
                context=config.transformer.context,
                max_period=10_000,
                causal=True,
                norm_first=True,
                bias_ff=False,
                bias_attn=False,
                layer_scale=0.01,
                positional_embedding="rope",
                use_conv_bias=True,
                gating=False,
                norm="layer_norm",
                max_seq_len=64,
                kv_repeat=1,
                conv_layout=True,
                use_conv_block=False,
                cross_attention=False,
                conv_kernel_size=3,
            ),
            quantizer_nq=config.num_codebooks,
            quantizer_bins=config.codebook_size,
            quantizer_dim=config.codebook_dim,
        )
    )
    mimi.load_pytorch_weights(str(tmp_path / "saved" / checkpoint.config.files.codec), strict=True)
    # Kernels last but one in PyTorch, last but channels in MLX.
    weight = to_numpy(mimi.encoder.layers[1].downsample.conv.conv.weight)
    assert np.array_equal(weight, checkpoint.codec["encoder.stages.1.resample.weight"].swapaxes(1, 2))
