"""Bytes and operations of a step, compared with what a runner allocates and what torch counts."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from benchmarks.gpu.bounds import Device, parts, products  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from slipstream.checkpoints.presets import PRESETS  # noqa: E402
from slipstream.model.capacity import codec_work, stream_bytes  # noqa: E402
from slipstream.nn.lm import LM  # noqa: E402
from slipstream.nn.mimi import Mimi  # noqa: E402
from slipstream.nn.ring import Ring, RingFormat  # noqa: E402
from slipstream.nn.state import State  # noqa: E402

H100 = Device(bandwidth=3.35e12, lm_rate=989e12, codec_rate=67e12)


def ring_bytes(state: State) -> int:
    if isinstance(state, Ring):
        return sum(buffer.nbytes for buffer in state.tensors)
    if isinstance(state, torch.Tensor):
        return 0
    return sum(ring_bytes(part) for part in (state.values() if isinstance(state, dict) else state))


@pytest.mark.parametrize(("int8", "align"), [(False, 1), (True, 64)])
@pytest.mark.parametrize("model", ["kyutai/stt-1b-en_fr", "kyutai/stt-2.6b-en"])
def test_the_rings_of_a_stream_are_those_of_the_modules(model: str, int8: bool, align: int) -> None:
    config, rings = PRESETS[model], RingFormat(int8=int8, align=align)
    with torch.device("meta"):
        codec, lm = Mimi(config.codec), LM(config.lm).bfloat16()
        allocated = ring_bytes(codec.encoder_state(1, RingFormat(align=align))) + ring_bytes(lm.init_state(1, 1, rings))
    assert stream_bytes(config, int8=int8, align=align) == allocated


@pytest.mark.parametrize("model", ["kyutai/stt-1b-en_fr", "kyutai/stt-2.6b-en"])
def test_operations_are_those_that_torch_counts(model: str) -> None:
    config = PRESETS[model]
    codec_parts, lm_parts = products(config)
    assert codec_work(config.codec)[0] == pytest.approx(sum(count.flops for count in codec_parts.values()), rel=0.01)
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


def test_weights_dominate_a_small_step_and_rings_a_large_one() -> None:
    one, many = (
        {part.name: part.bound(H100) for part in parts(PRESETS["kyutai/stt-1b-en_fr"], n, H100)} for n in (1, 512)
    )
    assert max(one, key=lambda name: one[name]) == "LM: products"
    assert max(many, key=lambda name: many[name]) == "LM: attention"
