"""The bytes and operations of a step, against what can be counted otherwise."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from benchmarks.roofline import Device, parts, products, stream_bytes  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from slipstream.backends.torch.lm import LM  # noqa: E402
from slipstream.backends.torch.mimi import Mimi  # noqa: E402
from slipstream.checkpoints.presets import PRESETS  # noqa: E402

H100 = Device(bandwidth=3.35e12, lm_rate=989e12, codec_rate=67e12)


@pytest.mark.parametrize(
    ("model", "megabytes"),
    [
        ("kyutai/stt-1b-en_fr", 2 * 16 * 750 * 2048 * 2 + 2 * 8 * 251 * 512 * 4),
        ("kyutai/stt-2.6b-en", 2 * 48 * 375 * 2048 * 2 + 2 * 8 * 251 * 512 * 4),
    ],
)
def test_the_rings_of_a_stream(model: str, megabytes: int) -> None:
    assert stream_bytes(PRESETS[model]) == megabytes


@pytest.mark.parametrize("model", ["kyutai/stt-1b-en_fr", "kyutai/stt-2.6b-en"])
def test_operations_are_those_that_torch_counts(model: str) -> None:
    config = PRESETS[model]
    codec_parts, lm_parts = products(config)
    with torch.device("meta"), torch.inference_mode():
        codec, lm = Mimi(config.codec), LM(config.lm)
        with FlopCounterMode(display=False) as counted:
            codec.latent(torch.empty(1, config.codec.frame_samples), codec.encoder_state(1))
        attention = 2 * 2 * 2 * 8 * 251 * 512  # two queries a layer over 251 columns, keys and values
        assert counted.get_total_flops() == attention + sum(count.flops for count in codec_parts.values())
        with FlopCounterMode(display=False) as counted:
            text, audio = lm.initial_tokens(1)
            lm.text_logits(lm(text, audio, lm.init_state(1))[0])
        rings = 2 * config.lm.transformer.num_layers * config.lm.transformer.dim * config.lm.transformer.context
        assert counted.get_total_flops() == 2 * rings + sum(count.flops for count in lm_parts.values())


def test_a_large_step_is_made_of_its_rings() -> None:
    one, many = (
        {part.name: part.bound(H100) for part in parts(PRESETS["kyutai/stt-1b-en_fr"], n, H100)} for n in (1, 512)
    )
    assert max(one, key=lambda name: one[name]) == "LM: products"
    assert max(many, key=lambda name: many[name]) == "LM: attention"
    assert many["LM: attention"] == pytest.approx(512 * 2 * 16 * 750 * 2048 * 2 / 3.35e12)
