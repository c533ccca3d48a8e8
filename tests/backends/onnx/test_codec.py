"""The codec's graph against the PyTorch codec, at the true shape of every part that differs in the small one."""

from __future__ import annotations

import numpy as np
import pytest
from tests.models import (
    codec_config,
    mel_codec_config,
    noise_and_tones,
    random_weights,
    whisper_codec_config,
    with_decoder,
)

from slipstream.backends.onnx.codec import codec_model
from slipstream.backends.onnx.codec_streams import CodecStreams
from slipstream.backends.onnx.inference import open_session
from slipstream.model.config import CodecConfig, MelConfig
from slipstream.model.names import codec_shapes

CODECS = {
    "waveform": codec_config(),
    "two residuals": codec_config(num_residual_layers=2, residual_kernel_size=5),
    "two semantic": codec_config(num_semantic=2),
    "log-mel": mel_codec_config(),
    "whisper": whisper_codec_config(),
    "whisper with a decoder": with_decoder(whisper_codec_config(), dim=36),
    "whisper without lookahead": whisper_codec_config(lookahead=0),
    "one position a frame": codec_config(mel=MelConfig(n_mels=20), ratios=(4, 2)),
    "four positions a frame": codec_config(mel=MelConfig(n_mels=20), ratios=(2,)),
}


def encode(config: CodecConfig, audio_S: np.ndarray, num_codebooks: int) -> np.ndarray:
    """Codes `[T, K]` of a streamed recording."""
    model = codec_model(config, random_weights(codec_shapes(config)), num_codebooks=num_codebooks)
    codec = CodecStreams(config, open_session(model, threads=1), 1, num_codebooks)
    codes = []
    for frame, pcm_S in enumerate(audio_S.reshape(-1, config.frame_samples)):
        codec.pcm_BS[0] = pcm_S
        codec.step(np.array([frame]), np.array([True]))
        codec.commit(np.array([True]))
        codes.append(codec.codes_BK[0].copy())
    return np.stack(codes)


@pytest.mark.parametrize("name", CODECS)
def test_codes_equal_the_offline_torch_codecs(name: str):
    torch = pytest.importorskip("torch")
    from slipstream.nn.build import build_codec

    config = CODECS[name]
    audio_S = noise_and_tones(30 * 0.08)
    with torch.inference_mode():
        expected, _ = build_codec(config, random_weights(codec_shapes(config))).encode(torch.from_numpy(audio_S)[None])
    found = encode(config, audio_S, config.num_codebooks)
    assert (found == expected[0].T.numpy()).mean() > 0.99
    assert len(np.unique(found)) > 8, "random weights that always say the same prove nothing"


@pytest.mark.parametrize("num_codebooks", [1, 4])
def test_fewer_codebooks_are_the_first_of_all(num_codebooks: int):
    config, audio_S = codec_config(), noise_and_tones(0.8)
    np.testing.assert_array_equal(encode(config, audio_S, num_codebooks), encode(config, audio_S, 6)[:, :num_codebooks])
