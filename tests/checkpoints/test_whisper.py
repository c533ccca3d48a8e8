"""Whisper's encoder and decoder read from the published formats, whole and damaged."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from tests.models import decoder_lm_config, random_weights

from slipstream.checkpoints.tensors import write_tensors
from slipstream.checkpoints.whisper import read_whisper, read_whisper_decoder
from slipstream.errors import CheckpointError
from slipstream.model.config import WhisperConfig
from slipstream.model.names import whisper_decoder_shapes, whisper_shapes
from slipstream.model.numerics import whisper_positions

CONFIG = WhisperConfig(n_mels=8, dim=128, num_heads=2, num_layers=2, ffn_dim=192)
WEIGHTS = random_weights(whisper_shapes(CONFIG))
DECODER_SHAPE = decoder_lm_config().transformer.model_copy(
    update={"dim": 128, "num_heads": 2, "num_layers": 2, "ffn_dim": 160}
)
DECODER_WEIGHTS = random_weights(
    {"embedding": (30, 128), "out_norm.weight": (128,), "out_norm.bias": (128,)}
    | whisper_decoder_shapes(DECODER_SHAPE, 20)
)
LAYER_NAMES = {
    "hugging face": {
        "norm1": "self_attn_layer_norm",
        "norm2": "final_layer_norm",
        **{f"attn.{name}_proj": f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")},
        "ffn.linear_in": "fc1",
        "ffn.linear_out": "fc2",
    },
    "openai": {
        "norm1": "attn_ln",
        "norm2": "mlp_ln",
        "attn.q_proj": "attn.query",
        "attn.k_proj": "attn.key",
        "attn.v_proj": "attn.value",
        "attn.out_proj": "attn.out",
        "ffn.linear_in": "mlp.0",
        "ffn.linear_out": "mlp.2",
    },
}
DECODER_LAYER_NAMES = {
    "hugging face": {
        **LAYER_NAMES["hugging face"],
        **{f"cross.{name}_proj": f"encoder_attn.{name}_proj" for name in ("q", "k", "v", "out")},
        "norm2": "encoder_attn_layer_norm",
        "norm3": "final_layer_norm",
    },
    "openai": {
        **LAYER_NAMES["openai"],
        "cross.q_proj": "cross_attn.query",
        "cross.k_proj": "cross_attn.key",
        "cross.v_proj": "cross_attn.value",
        "cross.out_proj": "cross_attn.out",
        "norm2": "cross_attn_ln",
        "norm3": "mlp_ln",
    },
}
DECODER_NAMES = {
    "hugging face": {
        "embedding": "embed_tokens.weight",
        "positions": "embed_positions.weight",
        "out_norm.weight": "layer_norm.weight",
        "out_norm.bias": "layer_norm.bias",
    },
    "openai": {
        "embedding": "token_embedding.weight",
        "positions": "positional_embedding",
        "out_norm.weight": "ln.weight",
        "out_norm.bias": "ln.bias",
    },
}


def named(layout: str) -> dict[str, np.ndarray]:
    """The weights of a whole Whisper under a layout's names."""
    prefix = "model.encoder." if layout == "hugging face" else "encoder."
    stack = "layers" if layout == "hugging face" else "blocks"
    out = {
        prefix + "conv1.weight": WEIGHTS["encoder.conv1.weight"],
        prefix + {"hugging face": "embed_positions.weight", "openai": "positional_embedding"}[layout]: (
            whisper_positions(128)
        ),
    }
    for name, array in WEIGHTS.items():
        _, *middle, leaf = name.split(".")
        if middle[0] == "layers":
            theirs = f"{stack}.{middle[1]}.{LAYER_NAMES[layout]['.'.join(middle[2:])]}.{leaf}"
        else:
            last = {"hugging face": "layer_norm", "openai": "ln_post"}[layout]
            theirs = f"{last if middle[0] == 'norm' else middle[0]}.{leaf}"
        out[prefix + theirs] = array
    for name, array in DECODER_WEIGHTS.items():
        if name.startswith("layers."):
            _, i, *middle, leaf = name.split(".")
            theirs = f"{stack}.{i}.{DECODER_LAYER_NAMES[layout]['.'.join(middle)]}.{leaf}"
        else:
            theirs = DECODER_NAMES[layout][name]
        out[prefix.replace("encoder", "decoder") + theirs] = array
    if layout == "hugging face":
        out["proj_out.weight"] = DECODER_WEIGHTS["embedding"]
    return out


def write_ctranslate2(path: Path, dtype: str) -> None:
    """A model file with every variable, in the format that `ctranslate2.models.Whisper` opens."""
    variables: dict[str, np.ndarray] = {"encoder/position_encodings/encodings": whisper_positions(128)}

    def add(name: str, array: np.ndarray) -> None:
        if dtype == "int8" and name.endswith("weight"):
            rows = array.reshape(len(array), -1)
            scale = 127 / np.abs(rows).max(axis=1)
            array = np.rint(rows * scale[:, None]).astype(np.int8)
            variables[name + "_scale"] = scale.astype(np.float32)
        elif dtype == "float16":
            array = array.astype(np.float16)
        variables[name] = array

    def add_layer(weights: dict[str, np.ndarray], ours: str, theirs: str, norms: dict[str, str]) -> None:
        for norm, part in norms.items():
            variables[f"{theirs}{part}/layer_norm/gamma"] = weights[f"{ours}{norm}.weight"]
            variables[f"{theirs}{part}/layer_norm/beta"] = weights[f"{ours}{norm}.bias"]
        weight = np.concatenate([weights[f"{ours}attn.{p}_proj.weight"] for p in "qkv"])
        q, v = (weights[f"{ours}attn.{p}_proj.bias"] for p in "qv")
        add(theirs + "self_attention/linear_0/weight", weight)
        add(theirs + "self_attention/linear_0/bias", np.concatenate([q, np.zeros_like(q), v]))
        for source, target in (
            ("attn.out_proj", "self_attention/linear_1"),
            ("ffn.linear_in", "ffn/linear_0"),
            ("ffn.linear_out", "ffn/linear_1"),
        ):
            add(f"{theirs}{target}/weight", weights[f"{ours}{source}.weight"])
            add(f"{theirs}{target}/bias", weights[f"{ours}{source}.bias"])

    for name in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"):
        add("encoder/" + name.replace(".", "/"), WEIGHTS["encoder." + name])
    variables |= {
        f"encoder/layer_norm/{t}": WEIGHTS[f"encoder.norm.{o}"] for t, o in (("gamma", "weight"), ("beta", "bias"))
    }
    for i in range(2):
        ours, theirs = f"encoder.layers.{i}.", f"encoder/layer_{i}/"
        add_layer(WEIGHTS, ours, theirs, {"norm1": "self_attention", "norm2": "ffn"})
    add("decoder/embeddings/weight", DECODER_WEIGHTS["embedding"])
    variables["decoder/position_encodings/encodings"] = DECODER_WEIGHTS["positions"]
    variables["decoder/scale_embeddings"] = np.zeros((), np.int8)
    for leaf, name in (("weight", "gamma"), ("bias", "beta")):
        variables[f"decoder/layer_norm/{name}"] = DECODER_WEIGHTS[f"out_norm.{leaf}"]
    for i in range(2):
        ours, theirs = f"layers.{i}.", f"decoder/layer_{i}/"
        add_layer(DECODER_WEIGHTS, ours, theirs, {"norm1": "self_attention", "norm2": "attention", "norm3": "ffn"})
        for leaf in ("weight", "bias"):
            value = DECODER_WEIGHTS[f"{ours}cross.v_proj.{leaf}"]
            key = DECODER_WEIGHTS.get(f"{ours}cross.k_proj.{leaf}", np.zeros_like(value))
            add(f"{theirs}attention/linear_0/{leaf}", DECODER_WEIGHTS[f"{ours}cross.q_proj.{leaf}"])
            add(f"{theirs}attention/linear_1/{leaf}", np.concatenate([key, value]))
            add(f"{theirs}attention/linear_2/{leaf}", DECODER_WEIGHTS[f"{ours}cross.out_proj.{leaf}"])
        variables[theirs + "self_attention/num_heads"] = np.array(2, np.int16)
    variables["decoder/projection/weight"] = np.zeros((2, 2), np.int8)
    codes = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        data += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += struct.pack("<BI", codes[array.dtype.name], array.nbytes) + array.tobytes()
    path.write_bytes(data + struct.pack("<I", 0))


def assert_read(name: str, tolerance: float = 0.0) -> None:
    config, tensors = read_whisper(name)
    assert config == CONFIG
    assert tensors.keys() == WEIGHTS.keys()
    decoder = read_whisper_decoder(name)
    assert (decoder.num_layers, decoder.num_heads) == (2, 2)
    assert decoder.tensors.keys() == DECODER_WEIGHTS.keys()
    for key, array in {**WEIGHTS, **DECODER_WEIGHTS}.items():
        found = {**tensors, **decoder.tensors}[key]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, array, atol=tolerance, rtol=0)


@pytest.mark.parametrize("layout", LAYER_NAMES)
def test_safetensors_are_read(tmp_path: Path, layout: str) -> None:
    write_tensors(tmp_path / "model.safetensors", named(layout))
    assert_read(f"whisper:{tmp_path}")
    assert_read(str(tmp_path / "model.safetensors"))


def test_shards_are_read(tmp_path: Path) -> None:
    tensors = named("hugging face")
    halves = list(tensors)[::2], list(tensors)[1::2]
    index = {}
    for i, half in enumerate(halves):
        write_tensors(tmp_path / f"{i}.safetensors", {name: tensors[name] for name in half})
        index |= dict.fromkeys(half, f"{i}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert_read(str(tmp_path))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 2e-3), ("int8", 0.02)])
def test_ctranslate2_is_read(tmp_path: Path, dtype: str, tolerance: float) -> None:
    write_ctranslate2(tmp_path / "model.bin", dtype)
    assert_read(f"whisper:{tmp_path}", tolerance)


def test_the_number_of_heads_comes_from_the_configuration(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", named("hugging face"))
    (tmp_path / "config.json").write_text(json.dumps({"encoder_attention_heads": 8}))
    assert read_whisper(str(tmp_path)).config.num_heads == 8
    (tmp_path / "config.json").write_text(json.dumps({"encoder_attention_heads": 5}))
    with pytest.raises(CheckpointError, match="width of 128 does not divide into 5 heads"):
        read_whisper(str(tmp_path))
    config = {"encoder_attention_heads": 8, "decoder_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_whisper_decoder(str(tmp_path)).num_heads == 4
    for wrong in (5, "4", 0):
        (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_attention_heads": wrong}))
        with pytest.raises(
            CheckpointError, match=rf"width of 128 does not divide into {wrong!r} heads.*decoder_attention"
        ):
            read_whisper_decoder(str(tmp_path))


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = named("openai")
    del tensors["encoder.blocks.1.mlp.0.bias"]
    write_tensors(path, tensors)
    with pytest.raises(CheckpointError, match=r"1 missing:\n +encoder\.layers\.1\.fc1\.bias \[192\]"):
        read_whisper(str(tmp_path))
    tensors = named("hugging face")
    del tensors["model.decoder.layers.1.encoder_attn.q_proj.bias"]
    tensors["model.decoder.layers.0.fc2.weight"] = np.zeros((128, 7), np.float32)
    tensors["model.decoder.extra"] = np.zeros(3, np.float32)
    write_tensors(path, tensors)
    with pytest.raises(CheckpointError) as caught:
        read_whisper_decoder(str(tmp_path))
    for name in ("layers.1.encoder_attn.q_proj.bias", "layers.0.fc2.weight", "decoder.extra"):
        assert name in str(caught.value)
    tensors = {name: array for name, array in tensors.items() if "decoder" not in name}
    for alone in ({}, {"model.decoder.embed_tokens.weight": np.zeros(3, np.float32)}):
        write_tensors(path, tensors | alone)
        with pytest.raises(CheckpointError, match="does not contain a Whisper decoder"):
            read_whisper_decoder(str(tmp_path))
    write_tensors(path, {"lm.weight": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match=r"does not contain a Whisper encoder: its tensors are called lm\.weight"):
        read_whisper(str(tmp_path))
    learnt = named("openai") | {"encoder.positional_embedding": np.ones((1500, 128), np.float32)}
    write_tensors(path, learnt)
    with pytest.raises(CheckpointError, match="learnt ones are not supported"):
        read_whisper(str(tmp_path))


def test_a_folder_without_weights_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors, its shards, or CTranslate2's model\.bin"):
        read_whisper(str(tmp_path))
    path = tmp_path / "model.bin"
    write_ctranslate2(path, "float32")
    whole = path.read_bytes()
    for damaged in (whole[:5000], whole[:3], b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not a CTranslate2 model, or cut short"):
            read_whisper(str(tmp_path))
    path.write_bytes(whole.replace(b"WhisperSpec", b"TransfoSpec"))
    with pytest.raises(CheckpointError, match=r"not a Whisper model of CTranslate2.*'TransfoSpec'"):
        read_whisper(str(tmp_path))
