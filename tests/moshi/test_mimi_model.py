"""`MimiModel`: offline and streaming calls give the same, slots pause and reset alone, misuse is refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.models import codec_config, mel_codec_config, noise_and_tones, random_weights  # noqa: E402

from slipstream.model.names import codec_shapes  # noqa: E402
from slipstream.moshi import MimiModel  # noqa: E402
from slipstream.nn.build import build_codec  # noqa: E402

FRAMES = 20


@pytest.fixture(scope="module")
def mimi() -> MimiModel:
    config = codec_config()
    return MimiModel(build_codec(config, random_weights(codec_shapes(config)))).eval()


@pytest.fixture(scope="module")
def audio() -> torch.Tensor:
    """Two slots of audio, `[2, 1, S]`."""
    return torch.stack([torch.from_numpy(noise_and_tones(FRAMES / 12.5, seed)) for seed in (3, 4)])[:, None]


def chunks(mimi: MimiModel, audio: torch.Tensor, *frames: int):
    return audio.split([mimi.frame_size * n for n in frames], dim=-1)


def test_streaming_equals_offline_for_any_chunks(mimi, audio):
    codes = mimi.encode(audio)
    assert codes.shape == (2, 6, FRAMES)
    with mimi.streaming(2):
        streamed = torch.cat([mimi.encode(x) for x in chunks(mimi, audio, 1, 5, 3, 1, 10)], dim=-1)
        heard = torch.cat([mimi.decode(x) for x in codes.split([4, 1, 1, 14], dim=-1)], dim=-1)
    assert streamed.equal(codes)
    torch.testing.assert_close(heard, mimi.decode(codes), atol=1e-4, rtol=1e-4)


def test_a_paused_slot_does_not_change_for_any_input(mimi, audio):
    expected = mimi.encode(audio)
    sound = mimi.decode(expected)
    first, rest = chunks(mimi, audio, 8, 12)
    noise = torch.full((2, 1, 6 * mimi.frame_size), torch.nan)
    noise[1] = audio[1, :, 8 * mimi.frame_size : 14 * mimi.frame_size]
    with mimi.streaming(2):
        mimi.encode(first)
        mimi.decode(expected[..., :8])
        mimi.set_exec_mask(torch.tensor([False, True]))
        noisy = mimi.encode(noise)  # longer than the free part of slot 0's ring
        given = torch.cat([torch.full_like(expected[:1, :, :6], -2), expected[1:, :, 8:14]])
        sound_noisy = mimi.decode(given)
        mimi.set_exec_mask(torch.tensor([True, False]))
        after = mimi.encode(rest)
        sound_after = mimi.decode(expected[..., 8:])
    assert noisy[1].equal(expected[1, :, 8:14])
    assert after[0].equal(expected[0, :, 8:])
    frame = mimi.frame_size
    torch.testing.assert_close(sound_noisy[1], sound[1, :, 8 * frame : 14 * frame], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sound_after[0], sound[0, :, 8 * frame :], atol=1e-4, rtol=1e-4)


def test_reset_restarts_the_masked_slots_and_lets_them_advance(mimi, audio):
    expected = mimi.encode(audio)
    first, second = chunks(mimi, audio, 10, 10)
    with mimi.streaming(2):
        mimi.encode(first)
        mimi.set_exec_mask(torch.zeros(2, dtype=torch.bool))
        mimi.reset_streaming(torch.tensor([True, False]))
        again = mimi.encode(first)
        mimi.set_exec_mask(torch.tensor([False, True]))
        on = mimi.encode(second)
        mimi.reset_streaming()
        both = mimi.encode(first)
    assert again[0].equal(expected[0, :, :10])
    assert on[1].equal(expected[1, :, 10:]), "slot 1 was paused while slot 0 began again"
    assert both.equal(expected[..., :10])


def test_fewer_codebooks_are_the_first_ones(mimi, audio):
    codes = mimi.encode(audio)
    mimi.set_num_codebooks(2)
    try:
        assert mimi.num_codebooks == 2
        assert mimi.encode(audio).equal(codes[:, :2])
        torch.testing.assert_close(mimi.encode_to_latent(audio), mimi.decode_latent(codes[:, :2]))
    finally:
        mimi.set_num_codebooks(mimi.total_codebooks)


@pytest.mark.parametrize("n", [0, 7])
def test_a_number_of_codebooks_that_the_codec_lacks(mimi, n):
    with pytest.raises(ValueError, match=f"{n} codebooks: this codec has 1 to 6"):
        mimi.set_num_codebooks(n)


def test_the_latent_of_a_stream(mimi, audio):
    whole = mimi.encode_to_latent(audio, quantize=False)
    assert whole.shape == (2, mimi.dimension, FRAMES)
    with mimi.streaming(2):
        pieces = [mimi.encode_to_latent(x, quantize=False) for x in chunks(mimi, audio, 7, 13)]
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole, atol=1e-4, rtol=1e-4)


def test_nested_streaming_of_one_object_is_refused(mimi):
    with mimi.streaming(1):
        assert mimi.is_streaming
        with pytest.raises(RuntimeError, match="MimiModel is streaming already"):
            mimi.streaming_forever(1)
    assert not mimi.is_streaming


def test_calls_outside_a_stream_are_refused(mimi):
    for call in (mimi.reset_streaming, lambda: mimi.set_exec_mask(torch.ones(1, dtype=torch.bool))):
        with pytest.raises(RuntimeError, match="MimiModel is not streaming: call it inside"):
            call()


def test_shapes_that_do_not_fit_are_refused(mimi, audio):
    with pytest.raises(ValueError, match=r"audio of shape \[2, 38400\]: expected \[batch, 1, samples\]"):
        mimi.encode(audio[:, 0])
    with mimi.streaming(2):
        with pytest.raises(ValueError, match="a batch of 1, but 2 streams were started"):
            mimi.encode(audio[:1])
        with pytest.raises(ValueError, match="1000 samples: while streaming, pass whole frames of 1920"):
            mimi.encode(audio[..., :1000])
        with pytest.raises(ValueError, match=r"a mask of shape \[3\]: expected \[2\]"):
            mimi.set_exec_mask(torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="batch_size=0: expected at least 1"):
        mimi.streaming(0)


def test_a_codec_without_a_decoder_streams_its_encoder():
    config = mel_codec_config()
    mimi = MimiModel(build_codec(config, random_weights(codec_shapes(config)))).eval()
    audio = torch.from_numpy(noise_and_tones(0.8))[None, None]
    with mimi.streaming(1):
        streamed = torch.cat([mimi.encode(x) for x in audio.split(mimi.frame_size, dim=-1)], dim=-1)
    assert streamed.equal(mimi.encode(audio))
