"""Capacity of a GPU, from shapes: the numbers in the documentation, and that they follow what they depend on."""

from __future__ import annotations

import pytest

from slipstream.checkpoints.presets import PRESETS
from slipstream.model.capacity import GPUS, plan, stream_bytes
from slipstream.testing import small_config

SMALL, LARGE = PRESETS["kyutai/stt-1b-en_fr"], PRESETS["kyutai/stt-2.6b-en"]


@pytest.mark.parametrize(("config", "full", "int8"), [(SMALL, 693, 1254), (LARGE, 454, 816)])
def test_streams_that_fit_on_an_h100(config, full: int, int8: int) -> None:
    assert plan(config, GPUS["h100"], int8_cache=False).slots == full
    assert plan(config, GPUS["h100"]).slots == int8


def test_a_step_of_all_planned_streams_is_within_a_frame() -> None:
    assert plan(SMALL, GPUS["h100"]).step_ms(1200) < 80
    assert plan(LARGE, GPUS["h100"]).step_ms(800) < 80
    assert plan(SMALL, GPUS["h100"], tf32=True).stream_ms < plan(SMALL, GPUS["h100"]).stream_ms


def test_a_slow_gpu_runs_fewer_streams_than_it_holds() -> None:
    found = plan(SMALL, GPUS["l4"])
    assert found.real_time < found.slots
    assert found.step_ms(found.real_time) <= 80 < found.step_ms(found.real_time + 1)


def test_a_whisper_encoder_has_rings_too() -> None:
    config = small_config(codec="whisper")
    whisper, lm = 4 * 2 * 3 * 24 * (11 + 4 + 4 - 1), 2 * 2 * 42 * 7 * 2
    assert stream_bytes(config) == whisper + lm
    assert plan(config, GPUS["h100"]).stream_ms > 0


def test_a_decoder_has_a_ring_of_text_and_one_of_audio() -> None:
    config = small_config(decoder=True)
    codec = stream_bytes(small_config()) - 2 * 2 * 42 * 7 * 2
    assert stream_bytes(config) == codec + 2 * 2 * 24 * (5 + 7) * 2
    assert stream_bytes(config, int8=True) == codec + 2 * 2 * (24 + 4 * 3) * (5 + 7)
    assert stream_bytes(small_config(decoder=True, vectors=4)) == codec + 2 * 2 * 24 * (5 + 4 * 7) * 2
