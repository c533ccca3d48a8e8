"""Whole checkpoints: saved, loaded and converted in every layout; every way of being broken has its words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from tests.models import lm_config, load_checkpoint, random_model, random_weights, stt_config

from slipstream.checkpoints.checkpoint import Checkpoint, convert, save_checkpoint
from slipstream.checkpoints.layouts import LAYOUTS
from slipstream.checkpoints.tensors import Array, Tensors, read_tensors, write_tensors
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import CodecConfig, FileNames, STTConfig
from slipstream.model.names import codec_shapes, lm_shapes

SMALL = lm_config().transformer.model_copy(update={"dim": 64, "num_heads": 2, "ffn_dim": 64})
CONFIGS = {
    "odd": stt_config(),
    "small": stt_config(transformer=SMALL, conditioners=(), pause_heads=0),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def make(config: STTConfig, folder: Path, dtype: type = np.float32) -> Checkpoint:
    lm, codec = random_model(config)
    tokenizer = folder / "spm.model"
    tokenizer.write_bytes(b"a tokenizer")
    return Checkpoint(config, {name: array.astype(dtype) for name, array in lm.items()}, codec, tokenizer)


def assert_same_tensors(left: Tensors, right: Tensors) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert right[name].dtype == array.dtype, name
        assert right[name].tobytes() == array.tobytes(), name


def assert_same(left: Checkpoint, right: Checkpoint) -> None:
    assert_same_tensors(left.lm, right.lm)
    assert_same_tensors(left.codec, right.codec)
    assert left.tokenizer.read_bytes() == right.tokenizer.read_bytes()
    assert left.config == right.config.model_copy(update={"files": left.config.files})


@every_layout
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_saved_checkpoint_is_loaded_bit_for_bit(layout: str, config: STTConfig, dtype: type, tmp_path: Path) -> None:
    checkpoint = make(config, tmp_path, dtype)
    save_checkpoint(checkpoint, tmp_path / "saved", layout)
    assert_same(load_checkpoint(tmp_path / "saved"), checkpoint)


def test_a_chain_of_conversions_through_every_layout_changes_no_bit(tmp_path: Path) -> None:
    checkpoint = make(stt_config(), tmp_path, ml_dtypes.bfloat16)
    save_checkpoint(checkpoint, tmp_path / "0", "kyutai")
    for step, layout in enumerate(["transformers", "mlx", "transformers", "candle", "mlx", "kyutai"]):
        convert(tmp_path / str(step), tmp_path / str(step + 1), layout)
    assert_same(load_checkpoint(tmp_path / "6"), checkpoint)


@pytest.mark.parametrize(
    ("codec", "called"), [("log-mel", "log-mel codec"), ("whisper", "codec with a Whisper encoder")]
)
def test_our_own_codecs_are_kept_by_kyutais_layouts(tmp_path: Path, codec: str, called: str) -> None:
    checkpoint = make(stt_config(codec=codec), tmp_path)
    for layout in ("kyutai", "candle", "mlx"):
        save_checkpoint(checkpoint, tmp_path / layout, layout)
        assert_same(load_checkpoint(tmp_path / layout), checkpoint)
    with pytest.raises(CheckpointError, match=f"transformers has no model with a {called}"):
        save_checkpoint(checkpoint, tmp_path / "transformers", "transformers")
    assert not (tmp_path / "transformers").exists()


def test_weights_are_views_of_their_files(tmp_path: Path) -> None:
    save_checkpoint(make(stt_config(), tmp_path), tmp_path / "saved", "kyutai")
    loaded = load_checkpoint(tmp_path / "saved")
    owned = {name for name, array in {**loaded.lm, **loaded.codec}.items() if array.base is None}
    assert owned == {"audio_emb.weight", "pause_heads.weight"}  # stacked from separate tensors


def test_files_have_the_names_that_the_configuration_gives(tmp_path: Path) -> None:
    checkpoint = make(stt_config(), tmp_path)
    for layout in ("kyutai", "candle", "mlx"):
        save_checkpoint(checkpoint, tmp_path / layout, layout)
        raw = json.loads((tmp_path / layout / "config.json").read_text())
        named = {raw[f"{part}_name"] for part in ("moshi", "mimi", "tokenizer", "mimi_config")}
        assert {path.name for path in (tmp_path / layout).iterdir()} == {"config.json", *named}


def test_the_published_codec_needs_no_configuration_file(tmp_path: Path) -> None:
    odd = make(stt_config(), tmp_path)
    lm = lm_config(audio_vocab=2048)
    codec = {name: np.zeros(shape, np.float16) for name, shape in codec_shapes(CodecConfig()).items()}
    config = odd.config.model_copy(update={"lm": lm, "codec": CodecConfig()})
    checkpoint = Checkpoint(config, random_weights(lm_shapes(lm)), codec, odd.tokenizer)
    save_checkpoint(checkpoint, tmp_path / "saved", "kyutai")
    assert "mimi_config_name" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert load_checkpoint(tmp_path / "saved").config.codec == CodecConfig()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype_is_that_of_the_lm_alone(dtype: str, tmp_path: Path) -> None:
    checkpoint = make(stt_config(), tmp_path)
    for layout in LAYOUTS:
        save_checkpoint(checkpoint, tmp_path / layout, layout, dtype=dtype)
        loaded = load_checkpoint(tmp_path / layout)
        assert {array.dtype.name for array in loaded.lm.values()} == {dtype}
        assert_same_tensors(loaded.codec, checkpoint.codec)
    with pytest.raises(CheckpointError, match="dtype='int8' is unknown: expected float32, float16, bfloat16"):
        save_checkpoint(checkpoint, tmp_path / "x", "kyutai", dtype="int8")


@pytest.mark.parametrize("width", [4, 8])
def test_a_quantised_lm_is_loaded_within_its_steps_and_converted_on(width: int, tmp_path: Path) -> None:
    checkpoint = make(CONFIGS["small"], tmp_path, ml_dtypes.bfloat16)
    save_checkpoint(checkpoint, tmp_path / "quantised", "mlx", quantize=width)
    assert (tmp_path / "quantised" / f"model.q{width}.safetensors").is_file()
    loaded = load_checkpoint(tmp_path / "quantised")
    assert loaded.config.files.lm == f"model.q{width}.safetensors"
    for name, array in checkpoint.lm.items():
        ours, theirs = (weights[name].astype(np.float32) for weights in (checkpoint.lm, loaded.lm))
        step = np.ptp(ours) / (2**width - 1) if array.ndim > 1 else 0.0
        assert np.abs(theirs - ours).max() <= step + np.abs(ours).max() / 64, name
    assert_same_tensors(loaded.codec, checkpoint.codec)
    convert(tmp_path / "quantised", tmp_path / "plain", "kyutai")
    assert_same(load_checkpoint(tmp_path / "plain"), loaded)


def test_kyutais_layout_keeps_8_bit_weights(tmp_path: Path) -> None:
    checkpoint = make(stt_config(codec="whisper"), tmp_path)
    save_checkpoint(checkpoint, tmp_path / "8", "kyutai", quantize=8)
    loaded = load_checkpoint(tmp_path / "8")
    for ours, theirs in ((checkpoint.lm, loaded.lm), (checkpoint.codec, loaded.codec)):
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            exact = array.ndim < 2 or name.endswith("learnt_padding")
            largest = 0 if exact else np.abs(array).max() / (256 if name.startswith("quantizer.") else 127)
            np.testing.assert_allclose(theirs[name].astype(np.float32), array, atol=largest, rtol=0)
    saved = read_tensors(tmp_path / "8" / loaded.config.files.codec)
    assert saved["encoder.layers.0.ffn.linear_in.weight"].dtype == np.int8
    save_checkpoint(loaded, tmp_path / "again", "kyutai", quantize=8)
    assert_same(load_checkpoint(tmp_path / "again"), loaded)


@pytest.mark.parametrize("bits", [4, 5, 6, 7])
def test_kyutais_layout_keeps_weights_in_few_bits(bits: int, tmp_path: Path) -> None:
    checkpoint = make(stt_config(codec="whisper"), tmp_path)
    save_checkpoint(checkpoint, tmp_path / "packed", "kyutai", quantize=bits)
    loaded = load_checkpoint(tmp_path / "packed")
    for ours, theirs in ((checkpoint.lm, loaded.lm), (checkpoint.codec, loaded.codec)):
        assert {name: array.shape for name, array in ours.items()} == {name: a.shape for name, a in theirs.items()}
        for name, array in ours.items():
            if name.startswith("quantizer."):
                np.testing.assert_allclose(theirs[name].astype(np.float32), array, rtol=1 / 256)
            elif array.ndim < 2 or name.endswith("learnt_padding"):
                np.testing.assert_array_equal(theirs[name], array)
            else:
                error = np.sqrt(np.square(theirs[name] - array).sum() / np.square(array).sum())
                own = max(4, bits - 1) if "emb." in name else bits
                assert error < 2.0 ** (1 - own), name
    saved = read_tensors(tmp_path / "packed" / loaded.config.files.codec)
    assert saved["encoder.conv1.weight"].dtype == np.uint8
    # An 8-bit file of the loaded model holds the same integers.
    save_checkpoint(loaded, tmp_path / "8", "kyutai", quantize=8)
    assert_same(load_checkpoint(tmp_path / "8"), loaded)


@pytest.mark.parametrize(
    ("bits", "tensor", "damaged", "message"),
    [
        (
            8,
            "encoder.conv1.weight_scale",
            lambda _: np.ones((24, 3), np.float32),
            r"encoder\.conv1\.weight int8, expected floating point",
        ),
        (
            5,
            "encoder.conv1.weight",
            lambda codes: codes[:, :-1].copy(),
            r"encoder\.conv1\.weight cannot be expanded: codes are uint8",
        ),
    ],
)
def test_quantised_weights_that_do_not_fit_each_other_are_named(
    bits: int, tensor: str, damaged: Callable[[Array], Array], message: str, tmp_path: Path
) -> None:
    save_checkpoint(make(stt_config(codec="whisper"), tmp_path), tmp_path / "saved", "kyutai", quantize=bits)
    path = tmp_path / "saved" / FileNames().codec
    tensors = read_tensors(path)
    write_tensors(path, {**tensors, tensor: damaged(tensors[tensor])})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "saved")


def test_quantisation_that_a_layout_lacks_is_refused_with_the_reason(tmp_path: Path) -> None:
    checkpoint = make(stt_config(), tmp_path)
    for layout, width, message in (
        ("candle", 8, "the layout candle has no quantised weights: use the layout kyutai, mlx or onnx"),
        ("kyutai", 3, "cannot quantise to 3 bits: the layout kyutai has 4, 5, 6, 7, 8"),
        ("mlx", 5, "cannot quantise to 5 bits: the layout mlx has 4, 8"),
    ):
        with pytest.raises(CheckpointError, match=message):
            save_checkpoint(checkpoint, tmp_path / "x", layout, quantize=width)
    with pytest.raises(CheckpointError, match="rows of 42 do not divide into groups of 64"):
        save_checkpoint(checkpoint, tmp_path / "x", "mlx", quantize=8)
    assert not (tmp_path / "x").exists()


def test_an_unknown_layout_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="layout 'onnx' is unknown"):
        save_checkpoint(make(stt_config(), tmp_path), tmp_path / "x", "onnx")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("layout", ["candle", "mlx", "transformers"])
def test_layouts_without_whispers_decoder_refuse_it_in_one_line(layout: str, tmp_path: Path) -> None:
    checkpoint = make(stt_config(decoder=True), tmp_path)
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(checkpoint, tmp_path / "x", layout)
    assert str(caught.value) == (
        f"the layout {layout} cannot hold Whisper's text decoder: use the layout kyutai or onnx"
    )
    assert not (tmp_path / "x").exists()


def test_conversion_takes_parts_from_elsewhere_and_never_writes_over_a_folder(tmp_path: Path) -> None:
    checkpoint = make(stt_config(), tmp_path)
    save_checkpoint(checkpoint, tmp_path / "source", "kyutai")
    other = tmp_path / "other.model"
    other.write_bytes(b"another tokenizer")
    convert(tmp_path / "source", tmp_path / "made", "mlx", dtype="bfloat16", tokenizer=other)
    made = load_checkpoint(tmp_path / "made")
    assert made.tokenizer.read_bytes() == b"another tokenizer"
    assert {array.dtype.name for array in made.lm.values()} == {"bfloat16"}
    for taken in (tmp_path / "made", other):
        with pytest.raises(CheckpointError, match=f"{taken.name} is not an empty folder: choose a new one"):
            convert(tmp_path / "source", taken, "mlx")


def test_a_conversion_that_fails_leaves_no_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("disk full")

    save_checkpoint(make(stt_config(), tmp_path), tmp_path / "source", "kyutai")
    with monkeypatch.context() as patch:
        patch.setattr("slipstream.checkpoints.tensors.save_file", fail)
        with pytest.raises(CheckpointError, match="cannot be written: disk full"):
            convert(tmp_path / "source", tmp_path / "made", "mlx")
    assert list((tmp_path / "made").iterdir()) == []
    convert(tmp_path / "source", tmp_path / "made", "mlx")


def test_a_checkpoint_can_be_saved_where_it_was_loaded_from(tmp_path: Path) -> None:
    checkpoint = make(stt_config(), tmp_path)
    save_checkpoint(checkpoint, tmp_path / "saved", "kyutai")
    save_checkpoint(load_checkpoint(tmp_path / "saved"), tmp_path / "saved", "kyutai")
    assert_same(load_checkpoint(tmp_path / "saved"), checkpoint)


def test_parts_in_different_layouts_are_each_read_in_theirs(tmp_path: Path) -> None:
    checkpoint = make(stt_config(), tmp_path)
    for layout in ("mlx", "transformers"):
        save_checkpoint(checkpoint, tmp_path / layout, layout)
    whole = tmp_path / "transformers" / "model.safetensors"
    assert_same(load_checkpoint(tmp_path / "mlx", codec=whole), checkpoint)
    assert_same(load_checkpoint(tmp_path / "transformers", lm=tmp_path / "mlx" / "model.safetensors"), checkpoint)


def test_weights_in_several_files_are_one(tmp_path: Path) -> None:
    checkpoint = make(stt_config(), tmp_path)
    save_checkpoint(checkpoint, tmp_path / "saved", "transformers")
    whole = tmp_path / "saved" / "model.safetensors"
    tensors = read_tensors(whole)
    names = sorted(tensors)
    pieces = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for piece, part in pieces.items():
        write_tensors(tmp_path / "saved" / piece, {name: tensors[name] for name in part})
    whole.unlink()
    index = {"weight_map": {name: piece for piece, part in pieces.items() for name in part}}
    (tmp_path / "saved" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(load_checkpoint(tmp_path / "saved"), checkpoint)
    write_tensors(tmp_path / "saved" / "model-2.safetensors", tensors)
    with pytest.raises(CheckpointError, match="in more than one of these files"):
        load_checkpoint(tmp_path / "saved")


def test_an_adapter_is_merged_into_the_weights(tmp_path: Path) -> None:
    checkpoint = make(stt_config(), tmp_path, ml_dtypes.bfloat16)
    save_checkpoint(checkpoint, tmp_path / "base", "kyutai")
    rng = np.random.default_rng(3)
    # The names of the published package's modules, whose projections are a list of one.
    theirs = {
        "transformer.layers.0.self_attn.in_projs.0": "transformer.layers.0.attn.in_proj.weight",
        "transformer.layers.1.self_attn.out_projs.0": "transformer.layers.1.attn.out_proj.weight",
        "transformer.layers.1.gating.linear_in": "transformer.layers.1.ffn.linear_in.weight",
        "transformer.layers.0.gating.linear_out": "transformer.layers.0.ffn.linear_out.weight",
        "text_linear": "text_linear.weight",
    }
    adapter, expected = {}, {name: array.astype(np.float32) for name, array in checkpoint.lm.items()}
    for name, ours in theirs.items():
        rows, columns = checkpoint.lm[ours].shape
        down, up = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, columns), (rows, 3)))
        adapter |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        expected[ours] = expected[ours] + 0.5 * up @ down
    write_tensors(tmp_path / "base" / "lora.safetensors", adapter)
    path = tmp_path / "base" / "config.json"
    keys = {"lora": True, "lora_rank": 3, "lora_scaling": 0.5, "lora_name": "lora.safetensors"}
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    loaded = load_checkpoint(tmp_path / "base")
    for name, array in expected.items():
        np.testing.assert_allclose(loaded.lm[name].astype(np.float32), array, rtol=1e-6, atol=1e-6, err_msg=name)
    for layout in LAYOUTS:  # no layout can apply the adapter twice
        convert(tmp_path / "base", tmp_path / layout, layout)
        assert_same(load_checkpoint(tmp_path / layout), loaded)


# ------------------------------------------------------------------------------------------------ broken checkpoints


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(make(stt_config(), tmp_path), tmp_path / "saved", "kyutai")
    return tmp_path / "saved"


def broken(saved: Path, change: dict[str, np.ndarray | None]) -> str:
    """The error when some of the LM's tensors are replaced, or removed (None)."""
    path = saved / "model.safetensors"
    tensors = {**read_tensors(path), **change}
    write_tensors(path, {name: array for name, array in tensors.items() if array is not None})
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(saved)
    return str(raised.value)


def test_one_error_lists_everything_that_is_wrong_with_a_file(saved: Path) -> None:
    bad = np.zeros((1, 1, 42), np.float32)
    bad[..., 5] = np.nan
    message = broken(
        saved,
        {
            "emb.3.weight": None,
            "text_linear.weight": np.zeros((39, 42), np.float32),
            "out_norm.alpha": bad,
            "lm_head.weight": np.zeros((2, 2), np.float32),
        },
    )
    assert message.splitlines() == [
        f"{saved}/model.safetensors does not fit its configuration:",
        "  1 missing:",
        "    emb.3.weight [33, 42]",
        "  1 not known:",
        "    lm_head.weight [2, 2]",
        "  1 of a wrong shape:",
        "    text_linear.weight [39, 42], expected [40, 42]",
        "  1 not finite (NaN or infinity):",
        "    out_norm.alpha",
    ]


def test_a_configuration_for_another_model_names_every_missing_layer(saved: Path) -> None:
    raw = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**raw, "num_layers": 3}))
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(saved)
    assert "6 missing:\n    transformer.layers.2.norm1.alpha [1, 1, 42]" in str(raised.value)


def test_a_truncated_download_is_reported(saved: Path) -> None:
    path = saved / "tokenizer-e351c8d8-checkpoint125.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"checkpoint125\.safetensors is cut short"):
        load_checkpoint(saved)


def test_a_pickle_is_refused(saved: Path) -> None:
    (saved / "model.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.pt is a pickle"):
        load_checkpoint(saved, lm=saved / "model.pt")


def test_a_typo_in_the_configuration_names_the_nearest_key(saved: Path) -> None:
    raw = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**raw, "num_head": 3}))
    with pytest.raises(ConfigError, match=r"saved/config\.json: unknown key 'num_head' .* did you mean 'num_heads'"):
        load_checkpoint(saved)


def test_swapped_files_are_reported_with_the_missing_tensors(saved: Path) -> None:
    codec = saved / "tokenizer-e351c8d8-checkpoint125.safetensors"
    with pytest.raises(CheckpointError, match="has no known layout"):
        load_checkpoint(saved, lm=codec)
