"""`config.json` of the published models: what is read from it, and errors that name its keys."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints.published import PUBLISHED_1B, PUBLISHED_2_6B, PUBLISHED_MIMI, changed
from tests.checkpoints.test_rust import PUBLISHED
from tests.models import decoder_lm_config, stt_config

from slipstream.checkpoints.kyutai import (
    KyutaiLM,
    delay_in_frames,
    dump_kyutai,
    parse_kyutai,
)
from slipstream.checkpoints.mimi import dump_codec, parse_codec
from slipstream.checkpoints.presets import PRESETS
from slipstream.checkpoints.rust import parse_rust_model
from slipstream.errors import ConfigError
from slipstream.model.confidence import EndingCurve
from slipstream.model.config import (
    CodecConfig,
    ConditionerConfig,
    RecordingsConfig,
)
from slipstream.schema import read_toml


@pytest.fixture
def rust_model(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "config.toml"
    path.write_text(PUBLISHED)
    return read_toml(path)["modules"]["asr"]["model"]


# ------------------------------------------------------------------------------------------------ the published files


def test_presets_equal_the_published_configurations() -> None:
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


def test_a_model_can_have_a_curve_for_its_ends_of_turn() -> None:
    curve = {"bias": -1.5, "heads": [1.0, 0.5, 0.0, -0.5], "silence": 7.0, "silence_seconds": 0.4}
    raw = {**PUBLISHED_1B, "stt_config": {**PUBLISHED_1B["stt_config"], "end_of_turn": curve}}
    config = parse_kyutai(raw)
    assert config.end_of_turn == EndingCurve(bias=-1.5, heads=(1.0, 0.5, 0.0, -0.5), silence=7.0, silence_seconds=0.4)
    assert parse_kyutai(dump_kyutai(config)) == config
    curve["heads"] = [1.0]
    with pytest.raises(ConfigError, match="end_of_turn has 1 weights of pause heads, the LM has 4"):
        parse_kyutai(raw)


def test_a_model_can_set_the_least_confidence_of_its_words() -> None:
    assert parse_kyutai(PUBLISHED_1B).min_confidence == 0
    raw = {**PUBLISHED_1B, "stt_config": {**PUBLISHED_1B["stt_config"], "min_confidence": 0.35}}
    config = parse_kyutai(raw)
    assert config.min_confidence == 0.35
    assert parse_kyutai(dump_kyutai(config)) == config
    raw["stt_config"]["min_confidence"] = 1
    with pytest.raises(ConfigError, match="min_confidence"):
        parse_kyutai(raw)


def test_a_model_can_set_the_beam_of_recordings() -> None:
    assert parse_kyutai(PUBLISHED_1B).beam == 1
    raw = {**PUBLISHED_1B, "stt_config": {**PUBLISHED_1B["stt_config"], "beam": 2}}
    config = parse_kyutai(raw)
    assert config.beam == 2
    assert parse_kyutai(dump_kyutai(config)) == config
    raw["stt_config"]["beam"] = 0
    with pytest.raises(ConfigError, match="beam"):
        parse_kyutai(raw)


@pytest.mark.parametrize("shift", [0.12, -0.12, 1.0])
def test_a_model_can_shift_the_times_of_its_words(shift: float) -> None:
    assert parse_kyutai(PUBLISHED_1B).word_shift_seconds == 0
    assert "word_shift_seconds" not in dump_kyutai(parse_kyutai(PUBLISHED_1B))["stt_config"]
    config = parse_kyutai({**PUBLISHED_1B, "stt_config": {**PUBLISHED_1B["stt_config"], "word_shift_seconds": shift}})
    assert config.word_shift_seconds == shift
    assert parse_kyutai(dump_kyutai(config)) == config


@pytest.mark.parametrize("shift", [1.01, -1.01, float("nan"), float("inf"), "a"])
def test_a_shift_of_more_than_a_second_is_refused(shift: object) -> None:
    raw = {**PUBLISHED_1B, "stt_config": {**PUBLISHED_1B["stt_config"], "word_shift_seconds": shift}}
    with pytest.raises(ConfigError, match="word_shift_seconds must be a number from -1 to 1"):
        parse_kyutai(raw)


def test_a_model_can_have_another_lookahead_for_recordings() -> None:
    assert parse_kyutai(PUBLISHED_1B).recordings is None
    config = stt_config(codec="whisper", decoder=True)
    assert "recordings" not in dump_kyutai(config)["stt_config"]
    config = config.model_copy(update={"recordings": RecordingsConfig(lookahead=12, delay_frames=12)})
    raw, codec = dump_kyutai(config), dump_codec(config.codec)
    assert raw["stt_config"]["recordings"] == {"lookahead": 12, "delay_frames": 12}
    assert parse_kyutai(raw, codec).recordings == config.recordings
    raw["stt_config"]["recordings"]["lookahead"] = -1
    with pytest.raises(ConfigError, match=r"stt_config\.recordings: lookahead must be .*, not -1"):
        parse_kyutai(raw, codec)
    raw["stt_config"]["recordings"] = {"lookahed": 12, "delay_frames": 12}
    with pytest.raises(ConfigError, match="lookahed"):
        parse_kyutai(raw, codec)


def test_a_model_can_have_a_calibration() -> None:
    assert parse_kyutai(PUBLISHED_1B).confidence is None
    raw = {**PUBLISHED_1B, "stt_config": {**PUBLISHED_1B["stt_config"]}}
    raw["stt_config"]["confidence"] = {"word": {"nats": [0.0, 2.0], "probability": [0.9, 0.1]}}
    config = parse_kyutai(raw)
    assert config.confidence is not None
    assert config.confidence.word.at(1.0) == 0.5
    assert dump_kyutai(config)["stt_config"]["confidence"] == raw["stt_config"]["confidence"]
    raw["stt_config"]["confidence"]["word"]["nats"] = [2.0, 0.0]
    with pytest.raises(ConfigError, match=r"stt_config\.confidence\.word: nats must increase"):
        parse_kyutai(raw)


@given(
    heads=st.integers(1, 20), half=st.integers(1, 40), ffn_dim=st.integers(1, 20_000), vectors=st.sampled_from([1, 4])
)
def test_a_whisper_decoder_is_read_back_as_it_was_written(heads: int, half: int, ffn_dim: int, vectors: int) -> None:
    size = {"dim": heads * half * 2, "num_heads": heads, "ffn_dim": ffn_dim}
    shape = decoder_lm_config().transformer.model_copy(update=size)
    config = stt_config(codec="whisper", decoder=True, transformer=shape, vectors=vectors)
    raw = json.loads(json.dumps([dump_kyutai(config), dump_codec(config.codec)]))
    assert raw[0]["whisper"] == {"audio_context": 7, "prefix": 2, "num_positions": 11, "vectors": vectors}
    assert parse_kyutai(*raw) == config
    if vectors == 1:  # a file of an older version
        del raw[0]["whisper"]["vectors"]
        assert parse_kyutai(*raw) == config


def test_the_languages_of_a_whisper_decoder_are_read_back() -> None:
    config = stt_config(codec="whisper", decoder=True, languages=("en", "fr"))
    raw = json.loads(json.dumps(dump_kyutai(config)))
    assert raw["whisper"]["languages"] == ["en", "fr"]
    assert parse_kyutai(raw, dump_codec(config.codec)) == config
    assert config.lm.languages == ("en", "fr")
    assert [config.lm.language_number(code) for code in ("fr", "en", "de")] == [2, 1, 0]
    assert stt_config().lm.language_number("fr") == 0


def test_errors_in_a_whisper_decoder_are_named() -> None:
    raw = dump_kyutai(stt_config(decoder=True))
    for wrong, message in (
        ({"audio_contxt": 7}, "audio_contxt"),
        ({"prefix": 0}, "whisper: prefix must be greater than 0, not 0"),
        ({"vectors": 17}, "whisper: vectors must be less than or equal to 16, not 17"),
        ({"prefix": 11, "num_positions": 11}, "num_positions=11 must be more than prefix=11"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_kyutai({**raw, "whisper": wrong})


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
