"""Whisper's encoder with limited context: masks against a plain reference, delay, positions, gradients."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.models import noise_and_tones, random_weights, whisper_codec_config  # noqa: E402

from slipstream.model.config import WhisperConfig  # noqa: E402
from slipstream.model.names import codec_shapes  # noqa: E402
from slipstream.nn.build import build_codec  # noqa: E402
from slipstream.nn.mel import LogMel  # noqa: E402
from slipstream.nn.whisper import WhisperEncoder, attend_nearby  # noqa: E402

CONFIG = whisper_codec_config()
SMALL = CONFIG.whisper


def make_encoder() -> WhisperEncoder:
    return build_codec(CONFIG, random_weights(codec_shapes(CONFIG))).encoder


def mel(frames: int = 120, batch: int = 2):
    front_end = LogMel(SMALL, 24_000)
    audio = np.stack([noise_and_tones(frames / 100, seed=b) for b in range(batch)])
    return front_end(torch.from_numpy(audio)[:, None])[0]


@pytest.mark.parametrize("length", [1, 5, 11, 12, 40])
@pytest.mark.parametrize(("context", "lookahead"), [(11, 4), (3, 0), (1, 2), (50, 60)])
def test_attention_in_blocks_equals_one_mask(length: int, context: int, lookahead: int):
    q, k, v = (torch.randn(2, 3, length, 4, dtype=torch.float64) for _ in range(3))
    distance = torch.arange(length)[:, None] - torch.arange(length)
    mask = (distance < context) & (distance >= -lookahead)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(attend_nearby(q, k, v, context, lookahead), expected)


def test_a_position_depends_on_its_context_and_lookahead_only():
    encoder, x = make_encoder(), mel(160, 1).requires_grad_(True)
    encoder.requires_grad_(False)
    (gradient,) = torch.autograd.grad(encoder.hidden(x)[-1][0, 50].square().sum(), x)
    frames = gradient[0].abs().sum(0).nonzero()[:, 0]
    layers = SMALL.num_layers
    # Position t reads log-mel frames 2 t - 3 to 2 t + 1; each layer adds context - 1 positions and lookahead.
    assert frames.min() == 2 * (50 - layers * (SMALL.context - 1)) - 3
    assert frames.max() == 2 * (50 + layers * SMALL.lookahead) + 1


def test_sequences_run_with_another_lookahead_than_that_of_the_configuration():
    x = mel()
    wider = whisper_codec_config(lookahead=9)
    other = build_codec(wider, random_weights(codec_shapes(wider))).encoder
    with torch.inference_mode():
        torch.testing.assert_close(make_encoder().hidden(x, lookahead=9)[-1], other.hidden(x)[-1])
        assert not torch.allclose(make_encoder().hidden(x)[-1], other.hidden(x)[-1])


def test_a_stream_lags_by_the_delay_and_starts_with_zeros():
    encoder, x = make_encoder(), mel()
    with torch.inference_mode():
        whole, (late, _) = encoder.hidden(x)[-1], encoder(x)
    assert SMALL.delay == 12
    assert (late[:, :12] == 0).all()
    torch.testing.assert_close(late[:, 12:], whole[:, :-12])


def test_positions_repeat_and_may_start_anywhere():
    encoder, x = make_encoder(), mel()
    with torch.inference_mode():
        plain = encoder.hidden(x)[-1]
        torch.testing.assert_close(encoder.hidden(x, start_B=torch.tensor([1500, 3000]))[-1], plain)
        moved = encoder.hidden(x, start_B=torch.tensor([0, 700]))[-1]
    torch.testing.assert_close(moved[0], plain[0])
    assert (moved[1] - plain[1]).abs().max() > 0.1


def test_all_layers_learn_under_autocast_and_with_recomputation():
    encoder, x = make_encoder().requires_grad_(True).train(), mel()
    gradients = []
    for encoder.checkpointing in (False, True):
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            states = encoder.hidden(x, start_B=torch.tensor([3, 9]))
        assert [state.shape for state in states] == [(2, 60, 24)] * 3
        sum(state.float().square().mean() for state in states).backward()
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient)


def test_the_front_end_has_a_fixed_floor_and_does_not_follow_the_level_of_the_clip():
    front_end = LogMel(WhisperConfig(mel_floor=-6.0), 24_000)
    audio = torch.from_numpy(noise_and_tones(1.0))[None, None]
    with torch.inference_mode():
        silence, _ = front_end(torch.zeros(1, 1, 2400))
        loud, _ = front_end(audio)
        quiet, _ = front_end(audio / 10)
    assert (silence == -0.5).all()
    torch.testing.assert_close(quiet, (loud - 0.5).clamp(min=-0.5), atol=1e-4, rtol=0)  # 20 dB: 2 in log10 of the power


def test_the_power_is_the_same_at_every_sample_rate():
    mels = []
    for rate in (16_000, 24_000, 48_000):
        time = np.arange(rate) / rate
        tone = torch.from_numpy(np.sin(2 * np.pi * 1000 * time).astype(np.float32))[None, None]
        mels.append(LogMel(WhisperConfig(), rate)(tone)[0][..., 10:].amax())
    torch.testing.assert_close(mels[1], mels[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(mels[2], mels[0], atol=1e-3, rtol=0)


def test_the_front_end_by_fourier_transform_is_the_same():
    features = pytest.importorskip("slipstream.data.packs")
    front_end, audio = LogMel(SMALL, 24_000), noise_and_tones(1.0)
    expected = front_end(torch.from_numpy(audio)[None, None])[0][0].T
    np.testing.assert_allclose(features.log_mel(front_end, audio), expected.numpy(), atol=1e-4)
