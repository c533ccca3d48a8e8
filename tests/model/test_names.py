"""Canonical names and shapes: the published models have exactly the parameters that are published."""

from __future__ import annotations

import math

from tests.models import codec_config, lm_config, mel_codec_config

from slipstream.checkpoints.kyutai import lm_table
from slipstream.checkpoints.presets import PRESETS
from slipstream.model.names import Shapes, codec_shapes, lm_shapes


def count(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def test_parameters_of_the_published_lms() -> None:
    assert count(lm_shapes(PRESETS["kyutai/stt-1b-en_fr-candle"].lm)) == 989_253_632
    assert count(lm_shapes(PRESETS["kyutai/stt-2.6b-en"].lm)) == 2_617_118_720


def test_a_codec_with_a_log_mel_front_end_only_encodes() -> None:
    shapes = codec_shapes(mel_codec_config())
    assert shapes["encoder.conv_in.weight"][1] == 20
    assert not any(name.startswith(("decoder", "upsample")) for name in shapes)
    assert any(name.startswith("decoder") for name in codec_shapes(codec_config()))


def test_missing_parts_have_no_names() -> None:
    assert "pause_heads.weight" in lm_shapes(lm_config())
    bare = lm_shapes(lm_config(pause_heads=0, conditioners=()))
    assert not any(name.startswith(("pause_heads", "conditioners")) for name in bare)


def test_the_plain_1b_model_has_131_tensors_and_the_candle_one_135() -> None:
    for name, tensors in (("kyutai/stt-1b-en_fr", 131), ("kyutai/stt-1b-en_fr-candle", 135)):
        assert len(lm_table(PRESETS[name].lm).shapes) == tensors
