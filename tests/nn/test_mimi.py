"""The codec: streaming equals offline past the wrap of its ring, encoder and decoder, waveform and log-mel."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from tests.models import (  # noqa: E402
    CODECS,
    codec_config,
    mel_codec_config,
    noise_and_tones,
    random_weights,
    whisper_codec_config,
    with_decoder,
)

from slipstream.checkpoints.presets import PRESETS  # noqa: E402
from slipstream.model.names import codec_shapes  # noqa: E402
from slipstream.nn.build import build_codec  # noqa: E402
from slipstream.nn.mimi import Mimi  # noqa: E402

DECODERS = {
    "of a Whisper encoder": with_decoder(whisper_codec_config(), dim=36),
    "of log-mel frames": with_decoder(mel_codec_config(), num_residual_layers=2),
    "four positions a frame": with_decoder(whisper_codec_config(), ratios=(6, 5, 4, 4)),
    "one position a frame": with_decoder(whisper_codec_config(), ratios=(8, 8, 6, 5)),
}
FRAMES = 20  # 40 Transformer positions, past the wrap of a ring of 12


def make(config) -> Mimi:
    return build_codec(config, random_weights(codec_shapes(config)))


def audio(batch: int = 2, frames: int = FRAMES):
    return torch.stack([torch.from_numpy(noise_and_tones(frames * 0.08, seed=b)) for b in range(batch)])


@pytest.mark.parametrize("config", CODECS.values(), ids=CODECS)
@settings(max_examples=8)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=12))
def test_encoding_a_stream_equals_encoding_the_whole(config, pieces):
    codec, x = make(config), audio()
    latent, _ = codec.latent(x)
    codes, _ = codec.encode(x)
    state, streamed, start = codec.encoder_state(2), [], 0
    frame = config.frame_samples
    for frames in [*pieces, FRAMES]:
        piece = x[:, start * frame : (start + frames) * frame]
        if not piece.shape[1]:
            break
        y, state = codec.latent(piece, state)
        streamed.append(y)
        start += frames
    torch.testing.assert_close(torch.cat(streamed, -1), latent, atol=1e-4, rtol=1e-4)
    assert (codec.quantizer.encode(torch.cat(streamed, -1)) == codes).float().mean() > 0.999
    assert codes.shape == (2, config.num_codebooks, FRAMES)
    assert codes.unique().numel() > 8, "random weights that always give the same code prove nothing"


def decode_whole_and_in_pieces(config):
    codec = make(config)
    codes = torch.randint(0, config.codebook_size, (2, config.num_codebooks, FRAMES))
    whole, _ = codec.decode(codes)
    assert whole.shape == (2, FRAMES * config.frame_samples)
    state, pieces = codec.decoder_state(2), []
    for piece in codes.split([1, 2, 7, 10], dim=-1):
        y, state = codec.decode(piece, state)
        pieces.append(y)
    return whole, torch.cat(pieces, -1)


def test_decoding_a_stream_equals_decoding_the_whole():
    whole, streamed = decode_whole_and_in_pieces(codec_config())
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", DECODERS.values(), ids=DECODERS)
def test_a_stream_of_a_decoder_with_another_shape_equals_the_whole(config):
    whole, streamed = decode_whole_and_in_pieces(config)
    torch.testing.assert_close(streamed, whole, atol=1e-6 * whole.abs().max().item(), rtol=1e-4)


def test_fewer_codebooks_are_the_first_ones():
    codec, x = make(codec_config()), audio(1)
    codes, _ = codec.encode(x)
    few, _ = codec.encode(x, num_codebooks=3)
    assert torch.equal(few, codes[:, :3])
    with pytest.raises(ValueError, match="num_codebooks=7: expected 1 to 6"):
        codec.encode(x, num_codebooks=7)


def test_quantiser_picks_the_nearest_vector():
    codec = make(codec_config())
    book = codec.quantizer.acoustic.codebooks[0]
    x = torch.randn(50, 10)
    expected = torch.cdist(x, book.embedding_sum / book.cluster_usage[:, None]).argmin(dim=-1)
    assert torch.equal(book.nearest(x), expected)


def test_offline_audio_is_padded_to_whole_frames_and_a_stream_refuses_part_of_one():
    config = codec_config()
    codec = make(config)
    assert codec.encode(torch.zeros(1, 1921))[0].shape[-1] == 2
    with pytest.raises(ValueError, match="whole frames of 1920 samples, not by 100"):
        codec.encode(torch.zeros(1, 100), codec.encoder_state(1))


def test_decoding_with_a_log_mel_codec_is_an_error():
    codec = make(mel_codec_config())
    with pytest.raises(ValueError, match="no decoder"):
        codec.decode(torch.zeros(1, 6, 1, dtype=torch.int64))


@pytest.mark.parametrize(
    "config", [codec_config(), mel_codec_config(), codec_config(num_residual_layers=2), *DECODERS.values()]
)
def test_state_dict_is_the_canon(config):
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in Mimi(config).state_dict().items()}
    assert shapes == codec_shapes(config)


def test_published_mimi_builds_with_its_parameter_count():
    with torch.device("meta"):
        codec = Mimi(PRESETS["kyutai/stt-1b-en_fr"].codec)
    assert sum(t.numel() for t in codec.state_dict().values()) == 96_151_361
