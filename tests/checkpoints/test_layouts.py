"""Every layout: exact round trips, detection by names, and the names and shapes that other runtimes expect."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from tests.models import codec_config, lm_config, mel_codec_config, whisper_codec_config, with_decoder

from slipstream.checkpoints import kyutai, mimi, mlx, transformers
from slipstream.checkpoints.layouts import LAYOUTS, fitting, get_layout
from slipstream.checkpoints.mimi import numbered
from slipstream.checkpoints.tables import Table
from slipstream.errors import CheckpointError
from slipstream.model.config import CodecConfig, LMConfig
from slipstream.model.names import Shapes, codec_shapes, lm_shapes

LUT = {"name": "control", "kind": "lut", "dim": 6, "num_bins": 3, "possible_values": ("good", "bad")}
LMS = {
    "odd": lm_config(),
    "small": lm_config(
        transformer=lm_config().transformer.model_copy(update={"dim": 64, "num_heads": 4}), conditioners=()
    ),
    "bare": lm_config(pause_heads=0, conditioners=()),
    "one codebook": lm_config(num_codebooks=1),
}
CODECS = {
    "odd": codec_config(),
    "two residual blocks": codec_config(num_residual_layers=2, ratios=(4, 3), num_filters=8, frame_rate=1000.0),
    "two semantic codebooks": codec_config(num_semantic=2, num_codebooks=3),
    "no stride": codec_config(ratios=(8, 6, 5, 4, 2)),
}


def bits(shapes: Shapes, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Arrays in which no two numbers of a tensor are alike, of any finite value."""
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def assert_back_again(table: Table, shapes: Shapes, dtype: np.dtype) -> None:
    ours = bits(shapes, dtype)
    theirs = table.write(ours)
    assert {name: array.shape for name, array in theirs.items() if name not in table.constants} == table.shapes
    back = table.read(theirs, "here")
    assert back.keys() == ours.keys()
    for name, array in ours.items():
        assert back[name].dtype == dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", LMS.values(), ids=LMS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_an_lm_round_trip_is_exact(layout: str, config: LMConfig, dtype: type) -> None:
    assert_back_again(LAYOUTS[layout].lm(config), lm_shapes(config), np.dtype(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", [*CODECS.values(), mel_codec_config()], ids=[*CODECS, "log-mel"])
def test_a_codec_round_trip_is_exact(layout: str, config: CodecConfig) -> None:
    assert_back_again(LAYOUTS[layout].codec(config), codec_shapes(config), np.dtype(np.float32))


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"transformers"}))  # which has no such codec
def test_a_round_trip_of_a_decoder_with_another_shape_is_exact(layout: str) -> None:
    config = with_decoder(whisper_codec_config(), dim=36, num_residual_layers=2)
    assert_back_again(LAYOUTS[layout].codec(config), codec_shapes(config), np.dtype(np.float32))


def test_a_layout_is_detected_by_its_names() -> None:
    for tables, shapes in (
        ([layout.lm(lm_config()) for layout in LAYOUTS.values()], lm_shapes(lm_config())),
        ([layout.codec(codec_config()) for layout in LAYOUTS.values()], codec_shapes(codec_config())),
    ):
        for table in tables:
            found = fitting(tables, table.write(bits(shapes, np.dtype(np.float32))), "here")
            assert found.shapes == table.shapes


def test_a_file_of_an_unknown_layout_is_reported_with_its_names() -> None:
    tables = [layout.lm(lm_config()) for layout in LAYOUTS.values()]
    with pytest.raises(CheckpointError, match=r"here has no known layout \(kyutai, candle.*called a, b"):
        fitting(tables, {"a": np.zeros(1), "b": np.zeros(1)}, "here")


def test_an_unknown_layout_lists_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match="layout 'mxl' is unknown: expected kyutai, candle, mlx, transformers"):
        get_layout("mxl")


# ------------------------------------------------------------------------------------------------------------- kyutai


def test_names_that_the_rust_server_asks_for() -> None:
    config = lm_config(num_codebooks=2, pause_heads=1)
    D, F = config.transformer.dim, config.transformer.ffn_dim
    expected = {
        "text_emb.weight": (41, D),
        "emb.0.weight": (33, D),
        "emb.1.weight": (33, D),
        "condition_provider.conditioners.delay.output_proj.weight": (D, 8),
        "condition_provider.conditioners.delay.learnt_padding": (1, 1, D),
        "out_norm.alpha": (1, 1, D),
        "text_linear.weight": (40, D),
        "extra_heads.0.weight": (6, D),
    }
    for i in range(2):
        expected |= {
            f"transformer.layers.{i}.norm1.alpha": (1, 1, D),
            f"transformer.layers.{i}.self_attn.in_proj_weight": (3 * D, D),
            f"transformer.layers.{i}.self_attn.out_proj.weight": (D, D),
            f"transformer.layers.{i}.norm2.alpha": (1, 1, D),
            f"transformer.layers.{i}.gating.linear_in.weight": (2 * F, D),
            f"transformer.layers.{i}.gating.linear_out.weight": (D, F),
        }
    assert LAYOUTS["candle"].lm(config).shapes == expected


def test_names_of_the_published_mimi() -> None:
    table = LAYOUTS["candle"].codec(CodecConfig())
    encoder = {name.split(".")[2] for name in table.shapes if name.startswith("encoder.model.")}
    decoder = {name.split(".")[2] for name in table.shapes if name.startswith("decoder.model.")}
    assert encoder == {"0", "1", "3", "4", "6", "7", "9", "10", "12", "14"}
    assert decoder == {"0", "2", "3", "5", "6", "8", "9", "11", "12", "14"}
    assert (
        table.shapes.items()
        >= {
            "encoder.model.0.conv.conv.weight": (64, 1, 7),
            "encoder.model.12.conv.conv.weight": (1024, 512, 16),
            "encoder.model.10.block.3.conv.conv.bias": (512,),
            "decoder.model.2.convtr.convtr.weight": (1024, 512, 16),
            "encoder_transformer.transformer.layers.7.self_attn.in_proj_weight": (1536, 512),
            "encoder_transformer.transformer.layers.0.linear1.weight": (2048, 512),
            "decoder_transformer.transformer.layers.0.layer_scale_1.scale": (512,),
            "downsample.conv.conv.conv.weight": (512, 512, 4),
            "upsample.convtr.convtr.convtr.weight": (512, 1, 4),
            "quantizer.rvq_first.input_proj.weight": (256, 512, 1),
            "quantizer.rvq_rest.vq.layers.30._codebook.embedding_sum": (2048, 256),
        }.items()
    )
    flags = [name for name in table.constants if name.endswith("._codebook._initialized")]
    assert len(flags) == len(table.constants) == 32
    convolutions, layers, resampling, codebooks = 6 + 4 * 2, 8, 2, 32
    assert len(table.shapes) == 2 * (2 * convolutions + 10 * layers) + resampling + 2 * 2 + 2 * codebooks


@pytest.mark.parametrize(
    ("published", "other"),
    [
        ("self_attn.in_proj_weight", "self_attn.in_projs.0.weight"),
        ("self_attn.in_proj_weight", "self_attn.in_proj.weight"),
        ("self_attn.out_proj.weight", "self_attn.out_projs.0.weight"),
        ("_codebook.embedding_sum", "_codebook.embed_avg"),
        ("_codebook.embedding_sum", "_codebook.embed_sum"),
        ("_codebook.cluster_usage", "_codebook.cluster_size"),
        ("_codebook._initialized", "_codebook.inited"),
    ],
)
def test_other_spellings_of_the_moshi_package_are_read(published: str, other: str) -> None:
    table = mimi.codec_table(codec_config())
    ours = bits(codec_shapes(codec_config()), np.dtype(np.float32))
    theirs = {name.replace(published, other): array for name, array in table.write(ours).items()}
    assert any(other in name for name in theirs)
    back = table.read(theirs, "here")
    assert all(np.array_equal(back[name], ours[name]) for name in ours)


def test_an_unused_depformer_projection_is_ignored() -> None:
    table = kyutai.lm_table(lm_config())
    theirs = table.write(bits(lm_shapes(lm_config()), np.dtype(np.float32)))
    table.read(theirs | {"depformer_in.0.weight": np.zeros((3, 3), np.float32)}, "here")
    with pytest.raises(CheckpointError, match=r"1 not known:\n    depformer\.layers\.0\.norm1\.alpha"):
        table.read(theirs | {"depformer.layers.0.norm1.alpha": np.zeros((1, 1, 3), np.float32)}, "here")


@pytest.mark.parametrize(("codebooks", "heads"), [(3, 4), (5, 2), (3, 0)])
def test_surplus_codebooks_and_heads_are_skipped(codebooks: int, heads: int, caplog: pytest.LogCaptureFixture) -> None:
    """Kyutai's deployed server reads 20 codebooks of a file with 32."""
    whole = bits(lm_shapes(lm_config()), np.dtype(np.float32))
    asked = lm_config(num_codebooks=codebooks, pause_heads=heads)
    back = kyutai.lm_table(asked).read(kyutai.lm_table(lm_config()).write(whole), "model.safetensors")
    assert {name: array.shape for name, array in back.items()} == lm_shapes(asked)
    for name, array in back.items():
        assert np.array_equal(array, whole[name][: len(array)])
    (record,) = caplog.records
    more = " and ".join(
        f"{count} more `{name}`" for name, count in (("emb", 5 - codebooks), ("extra_heads", 4 - heads)) if count
    )
    said = f"model.safetensors has {more} than the configuration: they are not used"
    assert record.getMessage() == said


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.conv_in.weight", "encoder.0.weight"),
        ("encoder.stages.0.residuals.0.conv1.weight", "encoder.1.block.1.weight"),
        ("encoder.stages.0.residuals.1.conv2.bias", "encoder.2.block.3.bias"),
        ("encoder.stages.0.resample.weight", "encoder.4.weight"),
        ("encoder.stages.1.residuals.0.conv1.weight", "encoder.5.block.1.weight"),
        ("encoder.conv_out.bias", "encoder.10.bias"),
        ("decoder.conv_in.weight", "decoder.0.weight"),
        ("decoder.stages.0.resample.weight", "decoder.2.resample.weight"),
        ("decoder.stages.0.residuals.0.conv1.weight", "decoder.3.block.1.weight"),
        ("decoder.stages.1.residuals.1.conv2.weight", "decoder.8.block.3.weight"),
        ("decoder.conv_out.weight", "decoder.10.weight"),
        ("encoder_transformer.layers.0.scale1", "encoder_transformer.layers.0.scale1"),
    ],
)
def test_positions_in_a_stack_of_two_stages_with_two_residual_blocks(name: str, expected: str) -> None:
    config = codec_config(num_residual_layers=2, ratios=(4, 3), frame_rate=1000.0)
    assert numbered(name, config) == expected


# ---------------------------------------------------------------------------------------------------------------- mlx


def quantizable(**changes: object) -> LMConfig:
    transformer = lm_config().transformer.model_copy(update={"dim": 192, "num_heads": 3, "ffn_dim": 128})
    return lm_config(transformer=transformer, conditioners=({**LUT, "dim": 64},), **changes)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_quantised_lm_is_read_back_within_a_quantisation_step(width: int, dtype: type) -> None:
    config = quantizable()
    ours = bits(lm_shapes(config), np.dtype(dtype))
    table = mlx.lm_table(config)
    theirs = mlx.quantized(table.write(ours), width)
    assert sum(name.endswith(".scales") for name in theirs) == sum(len(shape) == 2 for shape in table.shapes.values())
    back = table.read(theirs, "here")
    for name, array in ours.items():
        assert back[name].dtype == dtype
        moved = np.abs(back[name].astype(np.float32) - array.astype(np.float32))
        step = np.ptp(array.astype(np.float32)) / (2**width - 1)
        rounding = 2 * float(ml_dtypes.finfo(dtype).eps) * float(np.abs(array).max())
        assert moved.max() <= step + rounding, name
        if array.ndim == 1:
            assert not moved.any(), name


def test_quantised_tensors_that_do_not_fit_are_reported_as_they_are() -> None:
    config = quantizable()
    table = mlx.lm_table(config)
    theirs = mlx.quantized(table.write(bits(lm_shapes(config), np.dtype(np.float32))), 8)
    theirs["text_linear.weight"] = theirs["text_linear.weight"][:, :-1]
    with pytest.raises(CheckpointError) as raised:
        table.read(theirs, "here")
    message = str(raised.value)
    assert "text_linear.weight [40, 47], expected [40, 192]" in message
    assert "2 not known:\n    text_linear.scales [40, 3]\n    text_linear.biases [40, 3]" in message


def test_a_scale_that_is_not_finite_is_found() -> None:
    config = quantizable()
    table = mlx.lm_table(config)
    theirs = mlx.quantized(table.write(bits(lm_shapes(config), np.dtype(np.float32))), 4)
    theirs["text_emb.scales"][0, 0] = np.inf
    with pytest.raises(CheckpointError, match=r"1 not finite .*:\n    text_emb\.weight"):
        table.read(theirs, "here")


def test_the_file_of_quantised_weights_is_called_as_moshi_mlx_expects() -> None:
    assert mlx.file_name(None) == "model.safetensors"
    assert mlx.file_name(4) == "model.q4.safetensors"
    assert mlx.file_name(8) == "model.q8.safetensors"


# ------------------------------------------------------------------------------------------------------- transformers


def test_rotating_halves_of_their_rows_is_rotating_pairs_of_ours() -> None:
    heads, width, columns = 3, 8, 5
    matrix = np.random.default_rng(0).standard_normal((3 * heads * width, columns))
    query, key, value = transformers.Rotated("{}", heads).write([matrix])
    x = np.random.default_rng(1).standard_normal(columns)
    angles = np.linspace(0.1, 2.0, width // 2)
    cos, sin = np.cos(angles), np.sin(angles)
    ours = (np.split(matrix, 3)[1] @ x).reshape(heads, width // 2, 2)
    pairs = np.stack([ours[..., 0] * cos - ours[..., 1] * sin, ours[..., 1] * cos + ours[..., 0] * sin], axis=-1)
    theirs = (key @ x).reshape(heads, 2, width // 2)
    halves = np.stack([theirs[:, 0] * cos - theirs[:, 1] * sin, theirs[:, 1] * cos + theirs[:, 0] * sin], axis=1)
    np.testing.assert_allclose(halves, pairs.swapaxes(1, 2), atol=1e-12)
    assert not np.array_equal(query, np.split(matrix, 3)[0])
    assert np.array_equal(value, np.split(matrix, 3)[2])


def test_embeddings_are_one_table_with_a_row_of_zeros() -> None:
    config = lm_config()
    ours = bits(lm_shapes(config), np.dtype(np.float32))
    theirs = transformers.lm_table(config).write(ours)
    table = theirs["model.embed_tokens.embed_tokens.weight"]
    assert table.shape == (41 + 5 * 33 + 1, 42)
    assert np.array_equal(table[:41], ours["text_emb.weight"])
    assert np.array_equal(table[41 + 2 * 33 + 7], ours["audio_emb.weight"][2, 7])
    assert not table[-1].any()
    assert theirs["lm_head.weight"].shape == (41, 42)
    assert not theirs["lm_head.weight"][-1].any()


def test_tensors_without_a_place_in_transformers_are_separated() -> None:
    names = transformers.lm_table(lm_config()).shapes
    extras = {name for name in names if transformers.is_extra(name)}
    assert extras == {
        "pause_heads.weight",
        "conditioners.delay.output_proj.weight",
        "conditioners.delay.learnt_padding",
    }


def test_a_separate_codec_file_is_read_without_the_prefix() -> None:
    table = transformers.codec_table(codec_config())
    ours = bits(codec_shapes(codec_config()), np.dtype(np.float32))
    alone = {name.removeprefix("codec_model."): array for name, array in table.write(ours).items()}
    back = table.read(alone, "here")
    assert all(np.array_equal(back[name], ours[name]) for name in ours)


def test_lm_and_codec_are_each_read_from_the_file_that_holds_both() -> None:
    lm, codec = transformers.lm_table(lm_config()), transformers.codec_table(codec_config())
    both = lm.write(bits(lm_shapes(lm_config()), np.dtype(np.float32)))
    both = {name: array for name, array in both.items() if not transformers.is_extra(name)}
    both |= codec.write(bits(codec_shapes(codec_config()), np.dtype(np.float32)))
    assert codec.read(both, "here").keys() == codec_shapes(codec_config()).keys()
    with pytest.raises(CheckpointError) as raised:
        lm.read(both, "here")
    assert "not known" not in str(raised.value)
