"""Keywords that change in the middle of a stream."""

from __future__ import annotations

import numpy as np
import pytest
from tests.fakes import new_session
from tests.models import noise_and_tones, random_model, stt_config

from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.engine.options import SessionOptions
from slipstream.events import Word
from slipstream.hints import Hints, Keyword
from slipstream.testing import ScriptRunner, tiny_tokenizer
from slipstream.transcriber import Transcriber


@pytest.mark.parametrize("before", [Hints(), Hints(keywords=["fox"]), Hints(beam=2)])
def test_new_keywords_hold_from_the_next_frame(before: Hints) -> None:
    tokenizer = tiny_tokenizer()
    config = stt_config(text_vocab=tokenizer.vocab_size)
    runner = OnnxRunner(config, *random_model(config), slots=2, threads=1)
    audio_S = noise_and_tones(4.0, seed=4)

    def written(after: Hints | None) -> list[Word]:
        with transcriber.session(SessionOptions(hints=before)) as session:
            session.send(audio_S[:48_000])
            session.flush()
            events = []
            for event in session:
                events.append(event)
                if type(event).__name__ == "Flushed":
                    break
            if after is not None:
                session.set_hints(after)
            session.send(audio_S[48_000:])
            session.finish()
            return [event for event in [*events, *session] if isinstance(event, Word)]

    with Transcriber(runner, tokenizer, model="random") as transcriber:
        usual, changed = written(None), written(Hints(keywords=[Keyword("word", 10.0)]))
    early = [word for word in usual if word.end < 1.4]
    assert early == changed[: len(early)]
    assert usual != changed


def test_other_hints_hold_from_the_start() -> None:
    session = new_session(ScriptRunner(2), hints=Hints(beam=2))
    session.set_hints(Hints(keywords=["fox"], prompt="Dear", beam=1))
    assert session.options.hints == Hints(keywords=["fox"], beam=2)
    assert session.width == 2
    assert np.any(session.biases(0).bias_N > 0)
