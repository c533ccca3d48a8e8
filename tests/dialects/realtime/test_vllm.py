"""vLLM's dialect, and how it is distinguished from that of OpenAI."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dialects.realtime.conversation import Conversation, kinds, message, request, update
from tests.fakes import silence, sound_of

from slipstream.arrays import FloatArray
from slipstream.audio import Resampler
from slipstream.dialects.protocol import CloseCode
from slipstream.dialects.realtime import open_dialect
from slipstream.dialects.realtime.vllm import ORDER, VllmDialect

MODEL, COMMIT = message("session.update", model="script"), message("input_audio_buffer.commit")
FINAL = message("input_audio_buffer.commit", final=True)


def append(pcm_S: FloatArray) -> str:
    resampler = Resampler(24_000, 16_000)
    pcm_S = np.concatenate([resampler.push(pcm_S[np.newaxis])[0], resampler.flush()[0]])
    pcm = (np.clip(pcm_S, -1, 1) * 32767).round().astype("<i2").tobytes()
    return message("input_audio_buffer.append", audio=base64.b64encode(pcm).decode())


FOX, DOG = (append(np.concatenate([sound_of(word, 15), silence(10)])) for word in ("fox", "dog"))


def vllm() -> Conversation:
    return Conversation(VllmDialect(request()))


@pytest.mark.parametrize("commit_first", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_utterances(commit_first: bool, at_once: bool) -> None:
    client = vllm()
    assert client.sent == [{"type": "session.created", "id": "sess-7f", "created": 1_700_000_000}]
    send = client.send_at_once if at_once else client.send
    for word, audio in (("fox", FOX), ("dog", DOG)):
        answers = send(
            *([MODEL] if word == "fox" else []), *([COMMIT, audio] if commit_first else [audio, COMMIT]), FINAL
        )
        assert kinds(answers) == ["transcription.delta", "transcription.done"]
        assert answers[0]["delta"] == answers[1]["text"] == word
        usage = answers[1]["usage"]
        assert usage == {"prompt_tokens": 25, "completion_tokens": 1, "total_tokens": 26}


def test_text_waits_for_the_commit() -> None:
    client = vllm()
    assert client.send(MODEL, FOX) == []
    assert client.send(COMMIT) == [{"type": "transcription.delta", "delta": "fox"}]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "invalid_json"),
        (message("session.update"), "invalid_event"),
        (message("session.update", model="x"), "model_not_found"),
        (message("input_audio_buffer.append", audio=""), "invalid_audio"),
        (COMMIT, "model_not_validated"),
        (FOX, "model_not_validated"),
        (message("response.create"), "unknown_event"),
        (message("input_audio_buffer.commit", final=1), "invalid_event"),
    ],
)
def test_an_invalid_message_is_answered_by_an_error(text: str, code: str) -> None:
    client = vllm()
    (answer,) = client.send(text)
    assert (answer["type"], answer["code"]) == ("error", code)
    assert isinstance(answer["error"], str)
    assert client.send(MODEL, FOX, FINAL)[-1]["text"] == "fox"


def test_audio_that_is_not_base64_and_another_model_are_errors() -> None:
    client = vllm()
    client.send(MODEL)
    assert client.send(message("input_audio_buffer.append", audio="!"))[0]["code"] == "invalid_audio"
    assert client.send(message("session.update", model="other"))[0]["code"] == "invalid_event"
    assert json.loads(client.dialect.error("no", CloseCode.TRY_LATER))["code"] == "processing_error"  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_legal_messages_are_never_an_error_and_illegal_ones_are(data: st.DataObject) -> None:
    messages = {
        "session.update": MODEL,
        "input_audio_buffer.append": FOX,
        "input_audio_buffer.commit": COMMIT,
        "input_audio_buffer.commit final": FINAL,
    }
    client, state, ends = vllm(), "no model", 0
    for _ in range(data.draw(st.integers(1, 10))):
        kind = data.draw(st.sampled_from(sorted(messages)))
        answers = client.send(messages[kind])
        if kind in ORDER[state]:
            assert "error" not in kinds(answers)
            state = ORDER[state][kind]
            ends += kind.endswith("final")
        else:
            assert kinds(answers) == ["error"]
    assert kinds(client.sent).count("transcription.done") == ends


# ----------------------------------------------------------------------------------------------- one path, two dialects


def test_the_first_message_decides() -> None:
    for first, name in ((MODEL, "vllm"), (update(), "realtime"), ("{", "realtime")):
        client = Conversation(open_dialect(request()))
        created = client.sent[0]
        assert created["id"] == "sess-7f"
        assert created["session"]["id"] == "sess_7f"
        client.send(first)
        assert client.dialect.name == name
    assert client.send(update(turn_detection=None), FOX)[0]["type"] == "session.updated"


@pytest.mark.parametrize(
    ("query", "headers"), [([("intent", "transcription")], {}), ([], {"openai-beta": "realtime=v1"})]
)
def test_an_address_that_names_openais_protocol_is_never_vllm(
    query: list[tuple[str, str]], headers: dict[str, str]
) -> None:
    client = Conversation(open_dialect(request(*query, **headers)))
    assert kinds(client.send(MODEL)) == ["error"]
    assert client.dialect.name == "realtime"
