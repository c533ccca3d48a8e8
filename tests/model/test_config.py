"""Configurations: every one is read back as it was written, and they are strict."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints.published import PUBLISHED_1B
from tests.models import CODECS, codec_config, decoder_lm_config, lm_config, stt_config, whisper_codec_config

from slipstream.checkpoints.kyutai import (
    dump_kyutai,
    hidden_scale,
    parse_kyutai,
)
from slipstream.checkpoints.mimi import dump_codec, parse_codec
from slipstream.errors import ConfigError
from slipstream.model.config import (
    CodecConfig,
    ConditionerConfig,
    FileNames,
    LMConfig,
    MelConfig,
    RecordingsConfig,
    SamplingConfig,
    STTConfig,
    TransformerConfig,
    WhisperDecoderConfig,
)

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
def test_a_written_configuration_is_parsed_to_the_same_values(config: STTConfig) -> None:
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


@pytest.mark.parametrize(
    "change", [{"norm": "rms_norm"}, {"gated": True}, {"positions": "rope"}, {"layer_scale": True}], ids=str
)
def test_a_whisper_decoder_of_another_shape_is_refused(change: dict[str, object]) -> None:
    shape = decoder_lm_config().transformer
    with pytest.raises(ValueError, match="Whisper's decoder has norm='layer_norm', gated=False, positions='none'"):
        decoder_lm_config(transformer=shape.model_copy(update=change))
    with pytest.raises(ValueError, match="not that of a speech-to-text model"):
        stt_config(transformer=shape)


@pytest.mark.parametrize(
    "change",
    [{"conditioners": lm_config().conditioners}, {"delays": (0, 0, 0, 1, 0, 0)}, {"demux_text": True}],
    ids=["conditions", "delays", "two texts"],
)
def test_a_whisper_decoder_with_what_it_cannot_have_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Whisper's decoder has no conditions, no delays, and writes no audio"):
        decoder_lm_config(**change)
    assert decoder_lm_config(delays=(0,) * 6).whisper is not None


def test_the_learnt_positions_of_a_decoder_repeat_after_the_prefix() -> None:
    config = WhisperDecoderConfig(prefix=2, num_positions=5)
    assert [config.position(token) for token in range(5)] == [2, 3, 4, 2, 3]
    with pytest.raises(ValueError, match="num_positions=4 must be more than prefix=4"):
        WhisperDecoderConfig(prefix=4, num_positions=4)


def test_configs_are_frozen_and_strict() -> None:
    config = CodecConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.num_filters = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="valid integer"):
        CodecConfig(num_filters="64")
    with pytest.raises(ValueError, match="Extra inputs"):
        MelConfig(bands=80)


def test_recordings_have_another_lookahead_and_delay() -> None:
    config = stt_config(codec="whisper", decoder=True)
    assert config.for_recordings() is config
    both = STTConfig.model_validate({**dict(config), "recordings": RecordingsConfig(lookahead=12, delay_frames=12)})
    recordings = both.for_recordings()
    assert recordings.codec == whisper_codec_config(lookahead=12)
    assert (recordings.delay_frames, recordings.delay_seconds) == (12, 0.96)
    assert recordings.lag_frames == recordings.codec.delay_frames - config.codec.delay_frames == 6
    assert recordings.for_recordings() is recordings
    assert both.codec == config.codec
    assert recordings.model_copy(update=dict.fromkeys(("codec", "delay_frames", "delay_seconds", "lag_frames"))) == (
        config.model_copy(update=dict.fromkeys(("codec", "delay_frames", "delay_seconds", "lag_frames")))
    )


@pytest.mark.parametrize(
    ("config", "lookahead", "frames", "message"),
    [
        (stt_config(decoder=True), 12, 12, "recordings is for a codec with Whisper's encoder"),
        (stt_config(codec="whisper"), 12, 12, "recordings is for a model with one text delay"),
        (
            stt_config(codec="whisper", decoder=True),
            3,
            6,
            r"recordings\.lookahead=3 must be 4, as in live streams, or more",
        ),
        *(
            (
                stt_config(codec="whisper", decoder=True),
                12,
                frames,
                rf"recordings\.delay_frames={frames} must be 12: .* the 6 frames .* with recordings\.lookahead=12",
            )
            for frames in (8, 11, 13)
        ),
    ],
)
def test_what_recordings_cannot_have_is_refused(config: STTConfig, lookahead: int, frames: int, message: str) -> None:
    recordings = RecordingsConfig(lookahead=lookahead, delay_frames=frames)
    with pytest.raises(ValueError, match=message):
        STTConfig.model_validate({**dict(config), "recordings": recordings})


@pytest.mark.parametrize(("lookahead", "frames"), [(4, 6), (5, 7), (6, 8), (12, 12)])
def test_the_delay_of_recordings_follows_the_encoder(lookahead: int, frames: int) -> None:
    config = stt_config(codec="whisper", decoder=True)  # three layers, four positions a frame
    recordings = RecordingsConfig(lookahead=lookahead, delay_frames=frames)
    found = STTConfig.model_validate({**dict(config), "recordings": recordings}).for_recordings()
    assert 0 <= (found.delay_frames - found.codec.delay_frames) - (config.delay_frames - config.codec.delay_frames) < 1
