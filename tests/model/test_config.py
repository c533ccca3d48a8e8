"""Configurations: the published files, round trips, and errors that name the key of the file."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints.test_rust import PUBLISHED
from tests.models import CODECS, codec_config, lm_config, mel_codec_config, stt_config

from slipstream.checkpoints.kyutai import (
    KyutaiLM,
    delay_in_frames,
    dump_kyutai,
    hidden_scale,
    parse_kyutai,
)
from slipstream.checkpoints.mimi import dump_codec, parse_codec
from slipstream.checkpoints.presets import PRESETS
from slipstream.checkpoints.rust import parse_rust_model
from slipstream.errors import ConfigError
from slipstream.model.config import (
    CodecConfig,
    ConditionerConfig,
    FileNames,
    LMConfig,
    MelConfig,
    SamplingConfig,
    STTConfig,
    TransformerConfig,
    WhisperConfig,
)
from slipstream.schema import read_toml

# The config.json of kyutai/stt-2.6b-en.
PUBLISHED_2_6B: dict[str, Any] = {
    "card": 2048,
    "n_q": 32,
    "dep_q": 0,
    "delays": [0] * 33,
    "dim": 2048,
    "text_card": 4000,
    "existing_text_padding_id": 3,
    "num_heads": 32,
    "num_layers": 48,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 375,
    "max_period": 100000.0,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 1024,
    "depformer_num_heads": 16,
    "depformer_num_layers": 6,
    "depformer_dim_feedforward": None,
    "depformer_multi_linear": True,
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "conditioners": {},
    "cross_attention": False,
    "model_id": {"sig": "dabcc802", "epoch": 50},
    "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 50},
    "stt_config": {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0},
    "model_type": "stt",
    "mimi_name": "mimi-pytorch-e351c8d8@125.safetensors",
    "tokenizer_name": "tokenizer_en_audio_4000.model",
}
# That of kyutai/stt-1b-en_fr-candle, where it differs. Its model_id is left out: nothing depends on it.
PUBLISHED_1B = {
    **{key: value for key, value in PUBLISHED_2_6B.items() if key != "model_id"},
    "text_card": 8000,
    "num_heads": 16,
    "num_layers": 16,
    "context": 750,
    "extra_heads_num_heads": 4,
    "extra_heads_dim": 6,
    "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
    "tokenizer_name": "tokenizer_en_fr_audio_8000.model",
}
# The codec that the `moshi` package builds when a checkpoint names none.
PUBLISHED_MIMI: dict[str, Any] = {
    "sample_rate": 24000,
    "channels": 1,
    "frame_rate": 12.5,
    "seanet": {
        "channels": 1,
        "dimension": 512,
        "causal": True,
        "n_filters": 64,
        "n_residual_layers": 1,
        "activation": "ELU",
        "compress": 2,
        "dilation_base": 2,
        "disable_norm_outer_blocks": 0,
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 3,
        "norm": "none",
        "pad_mode": "constant",
        "ratios": [8, 6, 5, 4],
        "true_skip": True,
    },
    "quantizer": {"dimension": 256, "n_q": 32, "bins": 2048, "input_dimension": 512, "output_dimension": 512},
    "transformer": {
        "d_model": 512,
        "num_heads": 8,
        "num_layers": 8,
        "causal": True,
        "layer_scale": 0.01,
        "context": 250,
        "conv_layout": True,
        "max_period": 10000,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "dim_feedforward": 2048,
        "input_dimension": 512,
        "output_dimensions": [512],
    },
}


@pytest.fixture
def rust_model(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "config.toml"
    path.write_text(PUBLISHED)
    return read_toml(path)["modules"]["asr"]["model"]


def changed(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `raw` with the value at a path such as `seanet.ratios` replaced."""
    raw = copy.deepcopy(raw)
    *tables, key = path.split(".")
    table = raw
    for name in tables:
        table = table[name]
    table[key] = value
    return raw


# ------------------------------------------------------------------------------------------------ the published files


def test_presets_are_what_is_published() -> None:
    assert parse_kyutai(PUBLISHED_1B) == PRESETS["kyutai/stt-1b-en_fr-candle"]
    assert parse_kyutai(PUBLISHED_2_6B) == PRESETS["kyutai/stt-2.6b-en"]


def test_default_codec_is_the_published_mimi() -> None:
    assert parse_codec(PUBLISHED_MIMI) == CodecConfig()


def test_rust_server_model_is_the_same_lm(rust_model: dict[str, Any]) -> None:
    assert parse_rust_model(rust_model) == PRESETS["kyutai/stt-1b-en_fr-candle"].lm


@pytest.mark.parametrize("key", sorted(PUBLISHED_1B.keys() | KyutaiLM.ignored))
def test_every_published_key_is_known(key: str) -> None:
    raw = {**PUBLISHED_1B, key: PUBLISHED_1B.get(key)}
    assert parse_kyutai(raw) == PRESETS["kyutai/stt-1b-en_fr-candle"]


def test_dumped_preset_has_every_published_key_with_its_value() -> None:
    dumped = dump_kyutai(PRESETS["kyutai/stt-2.6b-en"])
    # What samples audio tokens is not kept: nothing here does.
    differing = {key for key, value in PUBLISHED_2_6B.items() if dumped[key] != value}
    assert differing <= {"lm_gen_config", "stt_config"}
    assert dumped["stt_config"].items() >= PUBLISHED_2_6B["stt_config"].items()


def test_a_model_can_set_its_end_of_turn_threshold() -> None:
    assert parse_kyutai(PUBLISHED_1B).end_of_turn_above == 0.6
    raw = {**PUBLISHED_1B, "stt_config": {**PUBLISHED_1B["stt_config"], "end_of_turn_above": 0.85}}
    config = parse_kyutai(raw)
    assert config.end_of_turn_above == 0.85
    assert parse_kyutai(dump_kyutai(config)) == config
    raw["stt_config"]["end_of_turn_above"] = 85
    with pytest.raises(ConfigError, match="end_of_turn_above"):
        parse_kyutai(raw)


# ------------------------------------------------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("num_head", "num_heads"),
        ("text_cards", "text_card"),
        ("hiden_scale", "hidden_scale"),
        ("stt_confg", "stt_config"),
        ("extra_head_dim", "extra_heads_dim"),
        ("depformer_num_layer", "depformer_num_layers"),
    ],
)
def test_typo_names_the_nearest_key(key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{key}' in config.json; did you mean '{nearest}'"):
        parse_kyutai({**PUBLISHED_1B, key: 1})


@pytest.mark.parametrize(
    ("table", "key", "nearest"),
    [
        ("stt_config", "audio_delay_second", "audio_delay_seconds"),
        ("lm_gen_config", "temp_txt", "temp_text"),
    ],
)
def test_typo_in_a_table_names_the_table(table: str, key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}' in {table}; did you mean '{nearest}'"):
        parse_kyutai(changed(PUBLISHED_1B, f"{table}.{key}", 1))


def test_a_key_unlike_any_other_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"known keys: .*audio_delay_seconds"):
        parse_kyutai(changed(PUBLISHED_1B, "stt_config.xyz", 1))


@pytest.mark.parametrize("key", ["card", "context", "dim", "n_q", "num_heads", "num_layers", "text_card"])
@pytest.mark.parametrize("value", ["2048", 2048.0, True, -1, 0, [2048], {}])
def test_size_of_a_wrong_kind_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"config.json: {key} must be a whole number above 0, not "):
        parse_kyutai({**PUBLISHED_1B, key: value})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("hidden_scale", "4.125", "a number above 0"),
        ("hidden_scale", math.inf, "a number above 0"),
        ("hidden_scale", math.nan, "a number above 0"),
        ("max_period", 0, "a number above 0"),
        ("delays", 0, "a list"),
        ("extra_heads_num_heads", 1.5, "a whole number, 0 or more"),
        ("conditioners", [], "a table"),
        ("fuser", "sum", "a table"),
        ("stt_config", 0.5, "a table"),
        ("model_id", "x", "a table"),
        ("mimi_name", 3, "text"),
        ("stt_config.audio_delay_seconds", "0.5", "a number, 0 or more"),
        ("stt_config.delay_frames", 6.0, "a whole number, 0 or more"),
        ("lm_gen_config.temp_text", -1, "a number, 0 or more"),
    ],
)
def test_value_of_a_wrong_kind_names_its_key(key: str, value: Any, expected: str) -> None:
    raw = changed(PUBLISHED_1B, key, value)
    with pytest.raises(ConfigError, match=f"{key.split('.')[-1]} must be {expected}, not "):
        parse_kyutai(raw)


def test_null_is_the_same_as_absent() -> None:
    assert parse_kyutai(changed(PUBLISHED_1B, "lm_gen_config.top_k_text", None)).sampling.top_k == 0


@pytest.mark.parametrize("key", ["dim", "card", "n_q", "text_card", "context"])
@pytest.mark.parametrize("absent", [False, True], ids=["null", "absent"])
def test_missing_sizes_are_named(key: str, absent: bool) -> None:
    raw = {**PUBLISHED_1B, key: None}
    if absent:
        del raw[key]
    with pytest.raises(ConfigError, match=f"config.json lacks {key}"):
        parse_kyutai(raw)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dep_q", 8),
        ("model_type", "tts"),
        ("gating", "gelu"),
        ("norm", "layer_norm"),
        ("causal", False),
        ("positional_embedding", "sin"),
        ("quantize", True),
        ("text_card_out", 4000),
        ("existing_text_padding_id", 0),
    ],
)
def test_models_that_cannot_be_run_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r} cannot be run here"):
        parse_kyutai({**PUBLISHED_1B, key: value})


def test_delays_must_be_none() -> None:
    with pytest.raises(ConfigError, match="all codebooks of a speech-to-text model have delay 0"):
        parse_kyutai({**PUBLISHED_1B, "delays": [0] * 32 + [1]})
    with pytest.raises(ConfigError, match=r"delays has 3 entries, expected n_q \+ 1 = 33"):
        parse_kyutai({**PUBLISHED_1B, "delays": [0] * 3})


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="dim=2048 must be num_heads=17 times an even head width"):
        parse_kyutai({**PUBLISHED_1B, "num_heads": 17})


def test_lm_and_codec_must_fit() -> None:
    with pytest.raises(ConfigError, match="the LM reads 33 codebooks, the codec writes 32"):
        parse_kyutai({**PUBLISHED_1B, "n_q": 33, "delays": [0] * 34})
    with pytest.raises(ConfigError, match="audio vocabulary is 1024, the codec's codebooks hold 2048"):
        parse_kyutai({**PUBLISHED_1B, "card": 1024})


def test_a_delay_must_be_given() -> None:
    with pytest.raises(ConfigError, match="stt_config lacks audio_delay_seconds"):
        parse_kyutai({**PUBLISHED_1B, "stt_config": {}})


@given(st.integers(0, 400))
def test_a_delay_of_whole_frames_counts_them(frames: int) -> None:
    seconds = round(frames * 0.08, 2)
    assert delay_in_frames(seconds) == frames


def test_published_delays_count_as_the_server_counts_them() -> None:
    assert (delay_in_frames(0.5), delay_in_frames(2.5)) == (6, 32)


# ------------------------------------------------------------------------------------------------------- conditioners

CONTINUOUS = {"type": "continuous", "continuous": {"dim": 8, "scale_factor": 10, "max_period": 100}}
LUT = {"type": "lut", "lut": {"dim": 8, "n_bins": 3, "tokenizer": "noop", "possible_values": ["a", "b"]}}


def with_conditioner(spec: Any, **more: Any) -> dict[str, Any]:
    return {**PUBLISHED_1B, "conditioners": {"delay": spec}, **more}


def test_conditioners_are_read_as_config_json_and_as_the_rust_server_write_them(rust_model: dict[str, Any]) -> None:
    expected = ConditionerConfig(name="delay", kind="continuous", dim=8, scale_factor=10.0, max_period=100.0)
    assert parse_kyutai(with_conditioner(CONTINUOUS)).lm.conditioners == (expected,)
    flat = {"type": "ContinuousAttribute", "dim": 8, "scale_factor": 10, "max_period": 100}
    assert parse_rust_model({**rust_model, "conditioners": {"delay": flat}}).conditioners == (expected,)
    lut = ConditionerConfig(name="delay", kind="lut", dim=8, num_bins=3, possible_values=("a", "b"))
    assert parse_kyutai(with_conditioner(LUT)).lm.conditioners == (lut,)
    flat = {"type": "Lut", "dim": 8, "n_bins": 3, "possible_values": ["a", "b"]}
    assert parse_rust_model({**rust_model, "conditioners": {"delay": flat}}).conditioners == (lut,)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lut", "conditioners: delay must be a table, not 'lut'"),
        ({"type": "text"}, "conditioners.delay.type='text' is not supported: expected 'continuous', 'lut' or 'tensor'"),
        ({}, "conditioners.delay lacks type"),
        (changed(LUT, "lut.dim", "8"), "conditioners.delay.lut: dim must be a whole number above 0, not '8'"),
        (changed(LUT, "lut.n_bin", 8), "unknown key 'n_bin' in conditioners.delay.lut; did you mean 'n_bins'"),
        (changed(LUT, "dim", 8), "unknown key 'dim' in conditioners.delay"),
        (changed(LUT, "lut.tokenizer", "whitespace"), "only 'noop' is supported"),
        (changed(LUT, "lut.n_bins", None), "conditioners.delay.lut lacks n_bins"),
        (changed(LUT, "lut.n_bins", 1), "2 values do not fit 1 bins"),
        (changed(CONTINUOUS, "continuous.dim", 3), "conditioners.0: a continuous condition needs an even dim"),
    ],
)
def test_an_error_in_a_conditioner_is_named(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_kyutai(with_conditioner(spec))


@pytest.mark.parametrize(
    ("fuser", "message"),
    [
        ({"sum": ["delay"], "cross": ["delay"]}, "only summed conditions are supported"),
        ({"sum": ["speed"]}, "must name each of the conditioners"),
        ({"sum": []}, "must name each of the conditioners"),
        ({"sums": []}, "did you mean 'sum'"),
        ({"sum": "delay"}, "fuser: sum must be a list, not 'delay'"),
    ],
)
def test_an_error_in_the_fuser_is_named(fuser: dict[str, Any], message: str) -> None:
    assert parse_kyutai(with_conditioner(CONTINUOUS, fuser={"sum": ["delay"], "cross": []})).lm.conditioners
    with pytest.raises(ConfigError, match=message):
        parse_kyutai(with_conditioner(CONTINUOUS, fuser=fuser))


# ---------------------------------------------------------------------------------------------------------- the codec


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("quantizer", None, "the codec's config lacks quantizer"),
        ("seanet.n_filter", 1, "unknown key 'n_filter' in seanet; did you mean 'n_filters'"),
        ("seanet.n_filters", "64", "seanet: n_filters must be a whole number above 0, not '64'"),
        ("seanet.ratios", 8, "seanet: ratios must be a list, not 8"),
        ("seanet.ratios", ["8"], "seanet.ratios.0 must be a whole number, not '8'"),
        ("seanet.ratios", [7, 6, 5, 4], "does not divide a frame"),
        ("seanet.pad_mode", "reflect", "only 'constant' is supported"),
        ("seanet.dimension", 256, r"seanet.dimension=256 cannot be run here: only 512 is supported, the width d_model"),
        ("transformer.d_model", None, "transformer lacks d_model"),
        ("transformer.max_period", "1e4", "transformer: max_period must be a number above 0"),
        ("transformer.gating", "silu", "only 'none' is supported"),
        ("quantizer.bin", 3, "unknown key 'bin' in quantizer; did you mean 'bins'"),
        ("quantizer.n_q", 0, "quantizer: n_q must be a whole number above 0, not 0"),
        ("quantizer.n_q", 1, "num_codebooks=1 must be more than num_semantic=1"),
        ("frame_rate", 12.51, "is not a whole number"),
        ("channels", 2, "only 1 is supported"),
    ],
)
def test_an_error_in_a_codec_is_named(key: str, value: Any, message: str) -> None:
    raw = changed(PUBLISHED_MIMI, key, value)
    with pytest.raises(ConfigError, match=message):
        parse_codec(raw)


def test_a_whisper_encoder_sets_width_rate_and_delay() -> None:
    codec = CodecConfig(whisper=WhisperConfig())
    assert (codec.dim, codec.hop_samples, codec.stride, codec.has_decoder) == (512, 480, 4, False)
    assert codec.delay_frames == 6.0
    assert CodecConfig().delay_frames == 0.0
    assert "ratios" not in dump_codec(codec)
    assert parse_codec(dump_codec(codec)) == codec
    stt_config(codec="whisper")
    with pytest.raises(ValueError, match="delay_frames=6 is less than the encoder's own delay of 12 frames"):
        STTConfig(
            codec=codec_config(whisper=WhisperConfig(lookahead=8)), lm=lm_config(), delay_seconds=0.5, delay_frames=6
        )


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"whisper": {"dim": 512, "num_heads": 7}}, "dim=512 must be a multiple of num_heads=7"),
        ({"whisper": {"lookahed": 4}}, "lookahed"),
        ({"whisper": {}, "mel": {}}, "mel and whisper exclude each other"),
        ({"whisper": {}, "sample_rate": 8000}, "sample rate of at least 16000"),
    ],
)
def test_an_error_in_a_whisper_encoder_is_named(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_codec(raw)


def test_own_form_of_a_codec_is_checked_too() -> None:
    dumped = dump_codec(mel_codec_config())
    assert parse_codec(dumped) == mel_codec_config()
    with pytest.raises(ConfigError, match="unknown key 'num_filter' in the codec's config; did you mean 'num_filters'"):
        parse_codec({**dumped, "num_filter": 3})
    with pytest.raises(ConfigError, match="num_filters must be a whole number, not '3'"):
        parse_codec({**dumped, "num_filters": "3"})


# -------------------------------------------------------------------------------------------- the Rust server's table


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("audio_codebook", 32, "unknown key 'audio_codebook' in model; did you mean 'audio_codebooks'"),
        ("audio_codebooks", None, "model lacks audio_codebooks"),
        ("text_in_vocab_size", "8001", "text_in_vocab_size must be a whole number above 0, not '8001'"),
        ("text_in_vocab_size", 8000, r"text_in_vocab_size=8000 must be text_out_vocab_size \+ 1 = 8001"),
        ("audio_vocab_size", 1, "leaves no audio token"),
        ("depformer", {"num_slices": 8}, "a speech-to-text model has none"),
        ("transformer", 3, "model: transformer must be a table, not 3"),
        ("transformer.d_models", 1, "unknown key 'd_models' in model.transformer; did you mean 'd_model'"),
        ("transformer.d_model", "2048", "model.transformer: d_model must be a whole number above 0"),
        ("transformer.max_period", None, "model.transformer lacks max_period"),
        ("transformer.norm", "LayerNorm", "only 'RmsNorm' is supported"),
        ("extra_heads.heads", 4, "unknown key 'heads' in model.extra_heads"),
    ],
)
def test_an_error_in_a_rust_model_is_named(rust_model: dict[str, Any], key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_rust_model(changed(rust_model, key, value))


def test_rust_model_without_heads_and_with_its_own_width(rust_model: dict[str, Any]) -> None:
    del rust_model["extra_heads"]
    rust_model["transformer"]["dim_feedforward"] = 8448
    config = parse_rust_model(rust_model)
    assert (config.pause_heads, config.transformer.ffn_dim) == (0, 5632)


def test_read_toml_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = ")
    with pytest.raises(ConfigError, match=r"bad\.toml: not TOML"):
        read_toml(tmp_path / "bad.toml")


# -------------------------------------------------------------------------------------------------------- round trips

counts = st.integers(1, 60)
names = st.text("abcdef_", min_size=1, max_size=5)
positives = st.floats(0.125, 1e6)


@st.composite
def conditioners(draw: st.DrawFn) -> tuple[ConditionerConfig, ...]:
    made = []
    for name in draw(st.lists(names, max_size=3, unique=True)):
        kind = draw(st.sampled_from(["continuous", "lut", "tensor"]))
        if kind == "continuous":
            made.append(
                ConditionerConfig(
                    name=name,
                    kind="continuous",
                    dim=2 * draw(st.integers(2, 9)),
                    scale_factor=draw(positives),
                    max_period=draw(positives),
                )
            )
        elif kind == "lut":
            values = draw(st.lists(names, max_size=3, unique=True))
            made.append(
                ConditionerConfig(
                    name=name, kind="lut", dim=draw(counts), num_bins=len(values) + 1, possible_values=tuple(values)
                )
            )
        else:
            made.append(ConditionerConfig(name=name, kind="tensor", dim=draw(counts)))
    return tuple(made)


@st.composite
def configs(draw: st.DrawFn) -> STTConfig:
    heads = draw(st.integers(1, 5))
    dim = heads * 2 * draw(st.integers(1, 20))
    transformer = TransformerConfig(
        dim=dim,
        num_heads=heads,
        num_layers=draw(counts),
        # config.json has a scale: these are the widths that a scale can describe.
        ffn_dim=draw(st.integers(1, 500)) * 2,
        context=draw(counts),
        max_period=1 + draw(positives),
        norm="rms_norm",
        gated=True,
    )
    codec = draw(st.sampled_from([CodecConfig(), *CODECS.values(), codec_config(num_semantic=2)]))
    made = draw(conditioners())
    return STTConfig(
        codec=codec,
        lm=LMConfig(
            transformer=transformer,
            text_vocab=draw(counts),
            audio_vocab=codec.codebook_size,
            num_codebooks=draw(st.integers(1, codec.num_codebooks)),
            pause_heads=draw(st.integers(0, 5)),
            pause_classes=draw(counts),
            conditioners=made,
        ),
        delay_seconds=draw(st.floats(0, 10)),
        delay_frames=draw(st.integers(math.ceil(codec.delay_frames), 100)),
        silence_prefix_seconds=draw(st.floats(0, 10)),
        sampling=SamplingConfig(temperature=draw(st.floats(0, 2)), top_k=draw(st.integers(0, 50))),
        files=FileNames(lm=draw(names), codec=draw(names), codec_config="mimi.json", tokenizer=draw(names)),
        model_id={"sig": draw(names)},
        condition_values={conditioner.name: draw(st.one_of(names, positives)) for conditioner in made},
    )


@given(configs())
def test_parsing_what_was_dumped_gives_the_same(config: STTConfig) -> None:
    raw = json.loads(json.dumps([dump_kyutai(config), dump_codec(config.codec)]))
    assert parse_kyutai(*raw) == config


@given(dim=st.integers(2, 5000), ffn_dim=st.integers(1, 20_000))
def test_hidden_scale_gives_the_width_again(dim: int, ffn_dim: int) -> None:
    try:
        scale = hidden_scale(dim, ffn_dim)
    except ConfigError:
        # The scale would have to be 4, which represents another width.
        assert (3 * ffn_dim + 1) // 2 == 4 * dim
        return
    raw = {**PUBLISHED_1B, "dim": 2 * dim, "num_heads": 1, "hidden_scale": scale}
    feed_forward = int(scale * dim)
    assert ffn_dim == (21 * dim // 8 if feed_forward == 4 * dim else 2 * feed_forward // 3)
    assert parse_kyutai(raw).lm.transformer.dim == 2 * dim


def test_an_lm_that_config_json_cannot_describe_is_refused() -> None:
    config = stt_config(transformer=lm_config().transformer.model_copy(update={"gated": False}))
    with pytest.raises(ConfigError, match="can only describe an LM with RMSNorm"):
        dump_kyutai(config)


def test_a_codec_without_layer_scale_stays_without() -> None:
    config = codec_config(transformer=codec_config().transformer.model_copy(update={"layer_scale": False}))
    assert parse_codec(json.loads(json.dumps(dump_codec(config)))) == config


def test_configs_are_frozen_and_strict() -> None:
    config = CodecConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.num_filters = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="valid integer"):
        CodecConfig(num_filters="64")
    with pytest.raises(ValueError, match="Extra inputs"):
        MelConfig(bands=80)
