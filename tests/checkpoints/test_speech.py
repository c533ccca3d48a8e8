"""Text-to-speech checkpoints: the published configurations, both layouts, and their errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoints.published import changed
from tests.fakes import tokenizer_path

from slipstream.checkpoints import kyutai
from slipstream.checkpoints.kyutai_tts import dump_tts, parse_tts
from slipstream.checkpoints.speech import SpeechCheckpoint, read_speech, resolve_speech, save_speech
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import LMConfig
from slipstream.model.names import lm_shapes
from slipstream.testing import random_model, random_weights, small_tts_config, tts_lm_config

# The config.json of kyutai/tts-1.6b-en_fr.
PUBLISHED_1_6B: dict[str, Any] = {
    "card": 2048,
    "n_q": 32,
    "dep_q": 32,
    "delays": [0, 0] + [2] * 31,
    "dim": 2048,
    "text_card": 8000,
    "existing_text_padding_id": 3,
    "num_heads": 16,
    "num_layers": 16,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 500,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 1024,
    "depformer_num_heads": 16,
    "depformer_num_layers": 4,
    "depformer_dim_feedforward": 3072,
    "depformer_multi_linear": True,
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "depformer_low_rank_embeddings": 128,
    "demux_second_stream": True,
    "text_card_out": None,
    "cross_attention": True,
    "conditioners": {
        "speaker_wavs": {"type": "tensor", "tensor": {"dim": 512}},
        "cfg": {
            "type": "lut",
            "lut": {
                "n_bins": 7,
                "dim": 16,
                "tokenizer": "noop",
                "possible_values": ["1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0"],
            },
        },
        "control": {
            "type": "lut",
            "lut": {"dim": 2048, "n_bins": 1, "tokenizer": "noop", "possible_values": ["ok"]},
        },
    },
    "fuser": {
        "cross_attention_pos_emb": True,
        "cross_attention_pos_emb_scale": 1,
        "sum": ["control", "cfg"],
        "prepend": [],
        "cross": ["speaker_wavs"],
    },
    "tts_config": {"audio_delay": 1.28, "second_stream_ahead": 2},
    "model_id": {"sig": "1e68beda", "epoch": 240},
    "depformer_weights_per_step_schedule": [*range(8), *[8] * 8, *[9] * 8, *[10] * 8],
    "model_type": "tts",
    "lm_gen_config": {"temp": 0.6, "text_temp": 0.6},
    "tokenizer_name": "tokenizer_spm_8k_en_fr_audio.model",
    "mimi_name": "tokenizer-e351c8d8-checkpoint125.safetensors",
    "moshi_name": "dsm_tts_1e68beda@240.safetensors",
}
# That of kyutai/tts-0.75b-en-public, where it differs. These values are not from its file: codebooks and delays are
# those of the model card, the sizes those that moshi.cpp states, the schedule and the conditioner are assumed.
ASSUMED_0_75B: dict[str, Any] = {
    **PUBLISHED_1_6B,
    "n_q": 16,
    "dep_q": 16,
    "delays": [0, 0] + [2] * 15,
    "dim": 1024,
    "num_layers": 24,
    "depformer_weights_per_step_schedule": [*range(8), *[8] * 8],
    "text_card_out": 5,
    "cross_attention": False,
    "conditioners": {"control": PUBLISHED_1_6B["conditioners"]["control"]},
    "fuser": {"sum": ["control"], "prepend": [], "cross": []},
    "model_id": {"sig": "d6ef30c7", "epoch": 1000},
    "moshi_name": "dsm_tts_d6ef30c7@1000.safetensors",
}


PARTS = ("transformer.", "depth.")


def file_size(config: LMConfig) -> int:
    """Bytes of a safetensors file: bfloat16, and float32 for the conditioners."""
    shapes = kyutai.lm_table(config).shapes
    header, offset = {}, 0
    for name in sorted(shapes):
        single = name.startswith("condition_provider.")
        end = offset + math.prod(shapes[name]) * (4 if single else 2)
        header[name] = {"dtype": "F32" if single else "BF16", "shape": shapes[name], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + offset


def test_names_and_shapes_make_the_published_size() -> None:
    lm = parse_tts(PUBLISHED_1_6B).lm
    assert len(kyutai.lm_table(lm).shapes) == 418
    assert sum(map(math.prod, lm_shapes(lm).values())) == 1_836_550_272
    assert file_size(lm) == 3_683_719_712  # dsm_tts_1e68beda@240.safetensors


def test_the_smaller_model_of_the_assumed_sizes() -> None:
    lm = parse_tts(ASSUMED_0_75B).lm
    assert sum(map(math.prod, lm_shapes(lm).values())) == 782_104_576
    assert file_size(lm) == 1_568_449_632
    # The model card states 300 M parameters for the LM's Transformer and 450 M for the depth Transformer.
    shapes = lm_shapes(lm).items()
    parts = {part: sum(math.prod(shape) for name, shape in shapes if name.startswith(part)) for part in PARTS}
    assert {part: round(count / 5e7) * 50 for part, count in parts.items()} == {"transformer.": 300, "depth.": 450}


@pytest.mark.parametrize("raw", [PUBLISHED_1_6B, ASSUMED_0_75B], ids=["1.6b", "0.75b"])
def test_modules_on_the_meta_device_have_these_tensors(raw: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from slipstream.nn.lm import LM

    config = parse_tts(raw).lm
    with torch.device("meta"):
        lm = LM(config)
    assert {name: tuple(tensor.shape) for name, tensor in lm.state_dict().items()} == lm_shapes(config)


def test_the_published_configuration() -> None:
    config = parse_tts(PUBLISHED_1_6B)
    assert (config.delay_steps, config.second_stream_ahead, config.max_speakers) == (16, 2, 5)
    assert config.speakers_by_condition
    assert config.sampling.text.temperature == config.sampling.audio.temperature == 0.6
    assert config.lm.depth is not None
    assert (config.lm.depth.num_weights, config.lm.depth.transformer.ffn_dim) == (11, 2048)
    assert not parse_tts(ASSUMED_0_75B).speakers_by_condition


@pytest.mark.parametrize("raw", [PUBLISHED_1_6B, ASSUMED_0_75B], ids=["1.6b", "0.75b"])
def test_a_configuration_is_written_as_it_was_read(raw: dict[str, Any]) -> None:
    assert parse_tts(json.loads(json.dumps(dump_tts(parse_tts(raw))))) == parse_tts(raw)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("dep_q", 0, "without audio output"),
        ("dep_q", 31, "the schedule has 32 entries for 31 codebooks"),
        ("dep_q", 33, "the schedule has 32 entries"),
        ("delays", [0, 1], "2 delays for a text and 32 audio streams"),
        ("fuser.cross", [], "must name each of the conditioners"),
        ("fuser.prepend", ["cfg"], "only fuser.sum and fuser.cross"),
        ("cross_attention", False, "cross_attention=False, but conditions are given to it"),
        ("depformer_multi_linear", False, "only True is supported"),
        ("depformer_pos_emb", "rope", "'sin' or 'none'"),
        ("demux_second_stream", False, "second_stream_ahead needs demux_second_stream"),
        ("tts_config.audio_delay", -1, "a number, 0 or more"),
        ("depformer_num_layer", 4, "did you mean 'depformer_num_layers'"),
        ("kv_repeat", 2, "only 1 is supported"),
    ],
)
def test_errors_name_the_key(path: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_tts(changed(PUBLISHED_1_6B, path, value))


SIMPLE = {"demux_text": False}


@pytest.mark.parametrize(
    ("layout", "changes"),
    [("kyutai", {}), ("kyutai", SIMPLE), ("candle", SIMPLE)],
    ids=["kyutai", "one text", "candle"],
)
def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path, layout: str, changes: dict[str, Any]) -> None:
    config = small_tts_config(**changes)
    lm, codec = random_model(config)
    save_speech(SpeechCheckpoint(config, lm, codec, tokenizer_path()), tmp_path, layout)
    back = read_speech(resolve_speech(tmp_path))
    assert back.config.lm == config.lm
    for ours, theirs in ((lm, back.lm), (codec, back.codec)):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_names_of_the_rust_server() -> None:
    config = tts_lm_config(**SIMPLE)
    theirs = kyutai.rust_lm_table(config).write(random_weights(lm_shapes(config)))
    assert theirs["depformer.3.transformer.layers.1.self_attn.in_proj_weight"].shape == (72, 24)
    assert theirs["depformer.0.emb.weight"].shape == (401, 6)
    assert theirs["depformer.1.emb.low_rank.weight"].shape == (24, 6)
    shared = [theirs[f"depformer.{k}.linear_in.weight"] for k in (1, 2, 3)]
    assert np.array_equal(shared[1], shared[2])
    assert not np.array_equal(shared[0], shared[1])


def test_copies_that_should_be_equal_but_are_not() -> None:
    config = tts_lm_config(**SIMPLE)
    theirs = kyutai.rust_lm_table(config).write(random_weights(lm_shapes(config)))
    theirs["depformer.3.linear_in.weight"] = theirs["depformer.3.linear_in.weight"] + 1
    with pytest.raises(CheckpointError, match=r"depformer\.3\.linear_in\.weight differs"):
        kyutai.rust_lm_table(config).read(theirs, "here")


def test_tensors_that_the_configuration_does_not_have() -> None:
    config = tts_lm_config()
    theirs = kyutai.lm_table(config).write(random_weights(lm_shapes(config)))
    theirs["depformer_in.3.weight"] = theirs["depformer_in.2.weight"]
    with pytest.raises(CheckpointError, match=r"1 not known:\n    depformer_in\.3\.weight"):
        kyutai.lm_table(config).read(theirs, "here")


def test_the_rust_server_has_no_second_text_stream(tmp_path: Path) -> None:
    config = small_tts_config()
    lm, codec = random_model(config)
    with pytest.raises(CheckpointError, match=r"no place for depth\.text_emb\.out1"):
        save_speech(SpeechCheckpoint(config, lm, codec, tokenizer_path()), tmp_path, "candle")
    with pytest.raises(CheckpointError, match="expected kyutai or candle"):
        save_speech(SpeechCheckpoint(config, lm, codec, tokenizer_path()), tmp_path, "mlx")
