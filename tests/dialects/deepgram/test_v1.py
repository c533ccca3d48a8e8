"""`/v1/listen` without a server, and with one: results, endpoints, channels and errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import ScriptRunner, silence, sound_of, speech
from tests.server.harness import serving, solo
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from slipstream.dialects.deepgram.results import alternative
from slipstream.dialects.deepgram.v1 import ORDER, DeepgramDialect, open_dialect
from slipstream.dialects.models import Models, StreamInfo, StreamRequest
from slipstream.dialects.protocol import Action, CloseCode, Finish, Flush, Open, ProtocolError, Send
from slipstream.events import Final, Flushed, OpenWord, Step, Word

RAW = (("encoding", "linear16"), ("sample_rate", "16000"))


def opened(*query: tuple[str, str], raw: bool = True) -> DeepgramDialect:
    models = Models({"script": StreamInfo("script", 0.5, 0.08)})
    usual = [one for one in RAW if raw and one[0] not in dict(query)]
    return open_dialect(StreamRequest(models, (*usual, *query), id="3f2a"))


def sent(actions: Any) -> list[dict[str, Any]]:
    return [json.loads(action.message) for action in actions if isinstance(action, Send)]


def ask(dialect: DeepgramDialect, **message: Any) -> list[Action]:
    return list(dialect.receive(json.dumps(message)))


def steps(dialect: DeepgramDialect, first: int, last: int, pause: float) -> list[Action]:
    return [
        action for frame in range(first, last + 1) for action in dialect.handle(Step(frame, (pause,) * 4, 0, pause), 0)
    ]


def test_endpointing_waits_for_its_pause_and_a_flush() -> None:
    dialect = opened(("endpointing", "300"), ("vad_events", "true"), ("punctuate", "true"))
    list(dialect.open())
    assert steps(dialect, 1, 20, 0.1) == []
    assert sent(dialect.handle(OpenWord("Yes.", 1.0, 0.9), 0)) == [
        {"type": "SpeechStarted", "channel": [0, 1], "timestamp": 1.0}
    ]
    assert list(dialect.handle(Word("Yes.", 1.0, 1.4, 0.9), 0)) == []
    assert steps(dialect, 21, 23, 0.9) == []
    assert steps(dialect, 24, 30, 0.9) == [Flush(0, buffered=False)]  # 4 frames are 0.32 s
    (result,) = sent(dialect.handle(Flushed(1.92, 0.1), 0))
    assert (result["is_final"], result["speech_final"], result["from_finalize"]) == (True, True, False)
    assert (result["start"], result["duration"]) == (0.0, 1.92)
    assert result["channel"]["alternatives"][0]["transcript"] == "Yes."
    assert steps(dialect, 31, 60, 0.9) == []  # once for each pause


def test_speech_without_words_has_no_endpoint_result() -> None:
    dialect = opened()
    list(dialect.open())
    steps(dialect, 1, 20, 0.1)
    assert steps(dialect, 21, 21, 0.9) == [Flush(0, buffered=False)]
    assert list(dialect.handle(Flushed(1.68, 0.1), 0)) == []


def test_without_endpointing_words_become_final_in_time() -> None:
    dialect = opened(("endpointing", "false"))
    list(dialect.open())
    results = []
    for second in range(12):
        assert steps(dialect, 12 * second + 1, 12 * second + 12, 0.9) == []
        results += sent(dialect.handle(Word(f"w{second}", float(second), second + 0.5, 0.5), 0))
    assert [result["channel"]["alternatives"][0]["transcript"] for result in results] == [
        "w0 w1 w2 w3 w4 w5",
        "w6 w7 w8 w9 w10",
    ]
    assert [(result["start"], result["duration"]) for result in results] == [(0.0, 5.5), (5.5, 5.0)]


def test_the_end_of_an_utterance_comes_once_after_its_last_word() -> None:
    dialect = opened(("interim_results", "true"), ("utterance_end_ms", "1000"), ("endpointing", "false"))
    list(dialect.open())
    list(dialect.handle(Word("yes", 0.5, 1.0, 0.9), 0))
    messages = sent(steps(dialect, 1, 60, 0.9))
    assert [message["type"] for message in messages] == ["Results", "UtteranceEnd"]
    assert messages[0]["is_final"]
    assert messages[1] == {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": 1.0}


def test_text_without_punctuate_is_bare() -> None:
    for query, transcript in ((("punctuate", "false"), "yes sir"), (("smart_format", "true"), "Yes, Sir!")):
        dialect = opened(query)
        list(dialect.open())
        for word in (Word("Yes,", 0.0, 0.4, 0.5), Word("Sir!", 0.4, 0.8, 1.0)):
            list(dialect.handle(word, 0))
        result, metadata = sent(dialect.handle(Final(1.0, 0.1), 0))
        (alternative,) = result["channel"]["alternatives"]
        assert (alternative["transcript"], alternative["confidence"]) == (transcript, 0.75)
        assert alternative["words"][1]["word"] == "sir"
        assert metadata["type"] == "Metadata"
        assert (metadata["duration"], metadata["channels"]) == (1.0, 1)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (
            ("callback", "https://example.org"),
            "callback: this server sends results on the connection of",
        ),
        (("encoding", "speex"), "expected one of linear16, linear32, mulaw, alaw, opus, ogg-opus, flac, amr-nb"),
        (("interim_results", "1"), "interim_results='1': expected true or false"),
        (("endpointing", "-1"), "endpointing='-1': expected a whole number from 0 to 60000"),
        (("utterance_end_ms", "1000"), "utterance_end_ms needs interim_results=true"),
        (("channels", "9"), "channels='9': expected a whole number from 1 to 8"),
        (("diarize_model", "v2"), "diarize_model='v2': expected one of latest, v1"),
        (("keywords", "a:b"), "keywords='a:b': expected word or word:boost"),
        (("keyterm", "a" * 201), "keyterm: a value has more than 200 characters"),
        (("model", "nova-3"), "unknown model 'nova-3': this server has script"),
    ],
)
def test_invalid_parameters_are_named(query: tuple[str, str], reason: str) -> None:
    with pytest.raises(Exception, match=reason):
        opened(query)


def test_raw_audio_needs_a_rate() -> None:
    with pytest.raises(ProtocolError, match="sample_rate is required with encoding=mulaw"):
        opened(("encoding", "mulaw"), raw=False)


def test_hints_are_kept() -> None:
    query = (("keyterm", "Kyutai"), ("keyterm", "Mimi"), ("keywords", "moshi:2"), ("language", "fr"))
    hints = opened(*query)._options.hints
    assert (hints.languages, hints.keyterms, hints.keywords) == (("fr",), ("Kyutai", "Mimi"), (("moshi", 2.0),))


@pytest.mark.parametrize(
    ("query", "languages"),
    [
        ([("language", "fr")], ("fr",)),
        ([("language", "multi")], ("auto",)),
        ([("detect_language", "true")], ("auto",)),
        ([("detect_language", "en"), ("detect_language", "fr")], ("en", "fr")),
        ([("detect_language", "true"), ("language", "fr")], ("fr",)),
        ([("detect_language", "false")], ()),
    ],
)
def test_languages_are_those_of_the_session(query: list[tuple[str, str]], languages: tuple[str, ...]) -> None:
    (opening,) = opened(*query).open()
    assert isinstance(opening, Open)
    assert opening.options.hints.languages == languages


def test_results_have_the_languages_of_their_words() -> None:
    words = [Word("the", 0, 1, language="en"), Word("chat", 1, 2, language="fr"), Word("dort", 2, 3, language="fr")]
    fields = alternative(words, punctuate=True)
    assert fields["languages"] == ("fr", "en")
    assert [word["language"] for word in fields["words"]] == ["en", "fr", "fr"]
    assert "languages" not in alternative([Word("the", 0, 1)], punctuate=True)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"type": "Stop"}', '{"type": "audio"}', '{"type": "Finalize", "channel": 4}']
)
def test_an_invalid_message_is_answered_and_the_stream_continues(text: str) -> None:
    dialect = opened()
    list(dialect.open())
    (answer,) = sent(dialect.receive(text))
    assert (answer["type"], answer["variant"], answer["message"]) == ("Error", "SchemaError", text)
    assert ask(dialect, type="Finalize") == [Flush(0)]


@given(st.lists(st.sampled_from(list(ORDER["open"])), max_size=20))
def test_any_order_of_legal_messages_follows_the_table(kinds: list[str]) -> None:
    dialect, state = opened(), "open"
    list(dialect.open())
    for kind in kinds:
        actions = list(dialect.receive(b"\0\0" * 100)) if kind == "audio" else ask(dialect, type=kind)
        if state == "closing":
            assert actions == []
        elif kind == "CloseStream":
            assert actions[-1] == Finish()
        elif kind == "Finalize":
            assert actions[-1] == Flush(0)
        state = ORDER[state][kind]


@settings(max_examples=100)
@given(st.data())
def test_every_word_is_final_once_in_any_order_of_events(data: st.DataObject) -> None:
    endpointing = data.draw(st.sampled_from(["10", "300", "false"]))
    dialect = opened(("interim_results", "true"), ("utterance_end_ms", "1000"), ("endpointing", endpointing))
    list(dialect.open())
    said: list[str] = []
    final: list[str] = []
    frame, finalizes, answered, end = 0, 0, 0, 0.0

    def read(actions: Any) -> None:
        nonlocal answered, end
        for message in sent(actions):
            if message["type"] == "Results" and message["is_final"]:
                final.extend(word["word"] for word in message["channel"]["alternatives"][0]["words"])
                answered += message["from_finalize"]
                assert message["start"] == pytest.approx(end, abs=2e-3)
                end = message["start"] + message["duration"]

    for _ in range(data.draw(st.integers(0, 60))):
        kind = data.draw(st.sampled_from(["step", "step", "word", "open", "flushed", "finalize"]))
        clock = frame * 0.08
        if kind == "step":
            frame += 1
            pause = data.draw(st.sampled_from([0.1, 0.5, 0.9]))
            read(dialect.handle(Step(frame, (pause,) * 4, 0, pause), 0))
        elif kind in ("word", "open"):
            said.append(f"w{len(said)}")
            if kind == "open":
                read(dialect.handle(OpenWord(said[-1], clock, 0.5), 0))
            read(dialect.handle(Word(said[-1], clock, clock, 0.5), 0))
        elif kind == "finalize":
            finalizes += 1
            read(ask(dialect, type="Finalize"))
        else:
            read(dialect.handle(Flushed(clock, 0.0), 0))
    read(dialect.handle(Flushed(frame * 0.08, 0.0), 0))
    read(dialect.handle(Final(frame * 0.08, 0.0), 0))
    assert final == said
    assert answered == finalizes


# ----------------------------------------------------------------------------------------------------- live sessions


async def listen(address: str, query: str, messages: list[bytes | str]) -> tuple[list[dict[str, Any]], Any]:
    received: list[dict[str, Any]] = []
    async with connect(f"{address}/v1/listen?{query}", max_queue=None) as socket:
        for message in messages:
            await socket.send(message)
        try:
            while True:
                received.append(json.loads(await asyncio.wait_for(socket.recv(), 20)))
        except ConnectionClosed as closed:
            return received, closed.rcvd


def final_words(received: list[dict[str, Any]], channel: int = 0) -> list[str]:
    return [
        word["punctuated_word"]
        for message in received
        if message["type"] == "Results" and message["is_final"] and message["channel_index"][0] == channel
        for word in message["channel"]["alternatives"][0]["words"]
    ]


CLOSE = json.dumps({"type": "CloseStream"})


def test_each_channel_is_a_session() -> None:
    left_S, right_S = speech(1, words=4), speech(2, words=5)
    samples = min(len(left_S), len(right_S))
    both_SC = np.stack([left_S[:samples], right_S[:samples]], axis=1).astype("<f4")
    query = "encoding=linear32&sample_rate=24000&channels=2&multichannel=true&punctuate=true"
    with serving(ScriptRunner(slots=2)) as running:
        received, close = asyncio.run(
            listen(running.ws, query, [both_SC[:50_001].tobytes(), both_SC[50_001:].tobytes(), CLOSE])
        )
    assert final_words(received, 0) == [word.text for word in solo(left_S[:samples])]
    assert final_words(received, 1) == [word.text for word in solo(right_S[:samples])]
    assert {tuple(message["channel_index"]) for message in received[:-1]} == {(0, 2), (1, 2)}
    assert (received[-1]["type"], received[-1]["channels"]) == ("Metadata", 2)
    assert close.code == 1000


def test_finalize_brings_the_words_of_all_audio_before_it() -> None:
    first_S, second_S = np.concatenate([sound_of("fox", 5), sound_of("dog", 4)]), sound_of("sea", 5)
    finalize = json.dumps({"type": "Finalize"})
    messages = [first_S.astype("<f4").tobytes(), finalize, second_S.astype("<f4").tobytes(), finalize, CLOSE]
    with serving(ScriptRunner()) as running:
        received, _ = asyncio.run(listen(running.ws, "encoding=linear32&sample_rate=24000&punctuate=true", messages))
    finalized = [message for message in received if message.get("from_finalize")]
    assert [message["channel"]["alternatives"][0]["transcript"] for message in finalized] == ["fox dog", "sea"]


def test_speech_is_final_after_a_pause() -> None:
    first_S = np.concatenate([silence(12), sound_of("fox", 5), silence(20)])
    second_S = np.concatenate([sound_of("dog", 5), silence(20)])
    query = "encoding=linear32&sample_rate=24000&punctuate=true&endpointing=100"

    async def talk(address: str) -> list[tuple[str, bool]]:
        texts = []
        async with connect(f"{address}/v1/listen?{query}", max_queue=None) as socket:
            await socket.send(first_S.astype("<f4").tobytes())
            async for text in socket:
                message = json.loads(text)
                if message["type"] == "Results":
                    texts.append((message["channel"]["alternatives"][0]["transcript"], message["speech_final"]))
                    if len(texts) == 1:  # a model that is faster than the event loop would pass the pause
                        await socket.send(second_S.astype("<f4").tobytes())
                        await socket.send(CLOSE)
        return texts

    with serving(ScriptRunner()) as running:
        assert asyncio.run(talk(running.ws)) == [("fox", True), ("dog", True), ("", False)]


@pytest.mark.parametrize("audio", [b"not audio at all" * 10, b"\0\0\0\x18ftypmp42" + bytes(40)])
def test_audio_that_cannot_be_decoded_closes_the_connection(audio: bytes) -> None:
    with serving(ScriptRunner()) as running:
        received, close = asyncio.run(listen(running.ws, "", [audio]))
    assert received == []
    assert close.code == CloseCode.POLICY_VIOLATION
    assert close.reason.startswith("DATA-0000: ")


def test_a_stream_without_audio_ends_with_metadata() -> None:
    with serving(ScriptRunner()) as running:
        received, close = asyncio.run(listen(running.ws, "multichannel=true", [CLOSE]))
    assert [message["type"] for message in received] == ["Metadata"]
    assert close.code == 1000


def test_a_silent_client_is_closed_after_ten_seconds() -> None:
    dialect = opened()
    assert dialect.idle_seconds == 10
    assert dialect.idle_close is not None
    assert (dialect.idle_close.code, dialect.idle_close.reason[:8]) == (1011, "NET-0001")
    assert [type(action) for action in dialect.open()] == [Open]
