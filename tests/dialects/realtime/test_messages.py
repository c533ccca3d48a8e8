"""Messages with audio in base64, however long they are and however they are written."""

from __future__ import annotations

import base64
import json
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.audio import Encoding, RawFormat
from slipstream.dialects.protocol import PIECE_SAMPLES
from slipstream.dialects.realtime.messages import AudioInput, InvalidMessage, read_message

PCM16 = RawFormat("pcm_s16le", 24_000)


@given(
    st.dictionaries(
        st.sampled_from(["type", "audio", "x", "audio "]),
        st.text(max_size=12) | st.integers() | st.dictionaries(st.just("audio"), st.text(max_size=5), max_size=1),
    ),
    st.sampled_from([(", ", ": "), (",", ":"), (" ,\n", " : ")]),
)
def test_a_message_is_read_as_json_reads_it(message: dict[str, object], separators: tuple[str, str]) -> None:
    nested = next((key for key in message if isinstance(message[key], dict)), None)
    if nested is None:
        assert read_message(json.dumps(message, separators=separators)) == message


def test_escaped_audio_is_read_in_a_short_message_only() -> None:
    assert read_message(r'{"audio": "\/w=="}') == {"audio": "/w=="}
    with pytest.raises(InvalidMessage, match="at most 65536 characters"):
        read_message(r'{"audio": "\/w' + "A" * 70_000 + '"}')


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000])
def test_a_long_message_is_decoded_in_pieces(rate: int) -> None:
    decoder = AudioInput(RawFormat("mulaw", rate), 24_000)
    audio = read_message(json.dumps({"audio": base64.b64encode(b"\xff" * (3 << 20)).decode()}))["audio"]
    sizes = [len(pcm_S) for pcm_S in islice(decoder.decode(audio), 20)]
    assert len(sizes) == 20
    assert max(sizes) <= PIECE_SAMPLES + 2400  # what the resampler held back


@given(st.lists(st.integers(0, 9), max_size=6))
def test_a_sample_may_be_cut_between_messages(cuts: list[int]) -> None:
    data = np.array([0, 16384, -32768, 8192, -16384], "<i2").tobytes()
    decoder = AudioInput(PCM16, 24_000)
    borders = [0, *sorted(cuts), len(data)]
    pieces = [
        pcm_S
        for start, end in pairwise(borders)
        for pcm_S in decoder.decode(base64.b64encode(data[start:end]).decode())
    ]
    assert np.concatenate(pieces).tolist() == [0.0, 0.5, -1.0, 0.25, -0.5]


def test_a_half_sample_before_a_flush_is_dropped() -> None:
    decoder = AudioInput(PCM16, 24_000)
    list(decoder.decode("AEAB"))
    decoder.flush()
    assert np.concatenate(list(decoder.decode("AEA="))).tolist() == [0.5]


@pytest.mark.parametrize("encoding", ["mulaw", "pcm_s16le"])
def test_the_audio_after_a_flush_is_that_without_it(encoding: Encoding) -> None:
    data = np.random.default_rng(1).bytes(32_000)
    flushed, whole = (AudioInput(RawFormat(encoding, 8_000), 24_000) for _ in range(2))
    first_S, rest_S = flushed.convert(data[:12_000]), flushed.flush()
    got_S = np.concatenate([first_S, rest_S, flushed.convert(data[12_000:]), flushed.flush()])
    expected_S = np.concatenate([whole.convert(data), whole.flush()])
    assert len(rest_S) > 0
    after = len(first_S) + len(rest_S)
    assert len(got_S) == len(expected_S)
    np.testing.assert_allclose(got_S[after:], expected_S[after:], atol=1e-6)
    assert np.array_equal(got_S[after:-2400], expected_S[after:-2400])


@pytest.mark.parametrize("audio", ["A" * 20_000 + "!", "AA==" * 10_000, "AAA", "AA A", "=AAA"])
def test_audio_that_is_not_base64_is_an_error(audio: str) -> None:
    with pytest.raises(InvalidMessage, match="audio: "):
        list(AudioInput(PCM16, 24_000).decode(audio))
