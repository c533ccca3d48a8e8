"""The codec streams as the PyTorch one computes the whole, past the wrap of its ring, from samples and log-mel."""

from __future__ import annotations

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core", reason="MLX is not installed: pip install 'slipstream-stt[mlx]'")
torch = pytest.importorskip("torch", reason="the offline forward is the PyTorch model's")

from tests.models import (  # noqa: E402
    codec_config,
    mel_codec_config,
    noise_and_tones,
    random_weights,
    whisper_codec_config,
    with_decoder,
)

from slipstream.backends.mlx.build import build_codec  # noqa: E402
from slipstream.model.config import CodecConfig  # noqa: E402
from slipstream.model.names import codec_shapes  # noqa: E402
from slipstream.nn.build import build_codec as build_torch_codec  # noqa: E402

FRAMES = 20  # 40 Transformer positions, past the wrap of a ring of 12
CONFIGS = {
    "waveform": codec_config(),
    "log-mel": mel_codec_config(),
    "whisper": whisper_codec_config(),
    "whisper with a decoder": with_decoder(whisper_codec_config(), dim=36),
    "whisper without lookahead": whisper_codec_config(lookahead=0),
    "several residual blocks": codec_config(num_residual_layers=2, residual_kernel_size=5),
    "two semantic codebooks": codec_config(num_semantic=2),
    "without a second stride": codec_config(frame_rate=25.0),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_codes_of_a_stream_are_the_offline_ones(config: CodecConfig):
    weights = random_weights(codec_shapes(config))
    codec, reference = build_codec(config, weights), build_torch_codec(config, weights)
    frame = config.frame_samples
    audio = np.stack([noise_and_tones(FRAMES * frame / 24_000, seed=slot) for slot in range(2)])
    with torch.inference_mode():
        expected, _ = reference.encode(torch.from_numpy(audio))
    state, codes = codec.init_state(2), []
    for t in range(FRAMES):
        at = codec.locate(np.full(2, t), np.zeros(2, np.int64))
        frame_B1K, state = codec.encode(mx.array(audio[:, t * frame :][:, :frame]), state, at, config.num_codebooks)
        mx.eval(frame_B1K, state)
        codes.append(np.array(frame_B1K))
    agreement = np.concatenate(codes, axis=1).swapaxes(1, 2) == expected.numpy()
    assert agreement.mean() > 0.999
    assert len(expected.unique()) > 8, "random weights that always give the same code prove nothing"


def test_fewer_codebooks_are_the_first_ones():
    config = codec_config()
    codec = build_codec(config, random_weights(codec_shapes(config)))
    latent = mx.random.normal((1, 3, config.dim))
    whole = codec.quantizer.encode(latent, 6)
    for count in (1, 2, 5):
        assert mx.array_equal(codec.quantizer.encode(latent, count), whole[..., :count])
