"""Kyutai's protocol of text to speech: voices that the client sends."""

from __future__ import annotations

import itertools

import msgpack
import numpy as np
import pytest

from slipstream.dialects.models import SpeechInfo
from slipstream.dialects.protocol import ProtocolError
from slipstream.dialects.speech.kyutai import KyutaiSpeech
from slipstream.dialects.speech.protocol import Begin
from slipstream.model.speech import Voice


def test_a_large_voice_of_the_client_is_not_unpacked() -> None:
    """It has the size of Kyutai's, with its keys in any order and floats of either width."""
    embedding_CT = np.random.default_rng(0).normal(size=(512, 125)).astype(np.float32)
    fields = {"type": "Voice", "embeddings": embedding_CT.ravel().tolist(), "shape": [1, 512, 125]}
    for order in itertools.permutations(fields):
        for single in (True, False):
            dialect = KyutaiSpeech({"format": "Pcm"}, SpeechInfo("a"))
            message = msgpack.packb({key: fields[key] for key in order}, use_single_float=single)
            assert list(dialect.receive(message)) == []
            begin, _ = dialect.receive("fox")
            assert isinstance(begin, Begin)
            assert isinstance(begin.voice, Voice)
            np.testing.assert_array_equal(begin.voice.embeddings[0], embedding_CT)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "Text", "text": "fox", "x": [[]] * 1_000_000},
        {"type": "Voice", "embeddings": [1] * 64_000, "shape": [1, 512, 125]},
        {"type": "Voice", "embeddings": [0.5] * 63_999 + [[]], "shape": [1, 512, 125]},
        {"embeddings": [0.5] * 64_000, "x": [[]] * 20_000},
    ],
)
def test_a_long_message_is_unpacked_for_no_one(fields: dict[str, object]) -> None:
    """A million lists would take a second, in which no other stream is served."""
    with pytest.raises(ProtocolError, match="at most 16384 bytes in addition to"):
        list(KyutaiSpeech({"format": "Pcm"}, SpeechInfo("a")).receive(msgpack.packb(fields)))
