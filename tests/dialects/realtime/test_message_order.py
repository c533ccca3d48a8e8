"""Messages of OpenAI's Realtime sessions in any order, on a WebSocket and in a call."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dialects import sequences as tables
from tests.dialects.realtime.conversation import Conversation, append, kinds, message, request, texts, update
from tests.dialects.realtime.test_transcription import CLEAR, COMMIT, MANUAL, ga
from tests.fakes import ScriptRunner, drive, new_session, silence, sound_of, speech, words_of

from slipstream.arrays import FloatArray
from slipstream.audio import RawFormat
from slipstream.dialects.protocol import Open
from slipstream.dialects.realtime.transcription import ORDER, TranscriptionDialect


def call() -> Conversation:
    return Conversation(TranscriptionDialect(request(), media=RawFormat("pcm_s16le", 48_000)))


def track(pcm_S: FloatArray) -> bytes:
    """Audio as the track of a call delivers it."""
    return (np.repeat(pcm_S, 2) * 32767).astype("<i2").tobytes()


SOUNDS = [np.concatenate([sound_of("fox", 9), silence(3)]), sound_of("dog", 5), silence(14)]
AUDIO = [append(pcm_S) for pcm_S in SOUNDS]
MESSAGES: dict[str, list[str | bytes]] = {
    "session.update": [MANUAL, update(turn_detection={"type": "server_vad"}), update(format={"type": "audio/pcm"})],
    "session.update with another model": [update(transcription={"model": "other"})],
    "input_audio_buffer.append": [*AUDIO],
    "input_audio_buffer.commit": [COMMIT],
    "input_audio_buffer.clear": [CLEAR],
}
CLIENTS: dict[str, tuple[Callable[[], Conversation], dict[str, list[str | bytes]]]] = {
    "WebSocket": (ga, MESSAGES),
    "call": (call, {**MESSAGES, "input_audio_buffer.append": [*map(track, (sound_of("fox", 15), silence(3)))]}),
}
AFTER: dict[str | None, set[str]] = {
    None: {"speech_started", "delta", "committed", "timeout_triggered"},
    "timeout_triggered": {"committed"},
    "speech_started": {"delta", "speech_stopped"},
    "delta": {"delta", "speech_stopped", "committed", "completed"},
    "speech_stopped": {"committed"},
    "committed": {"added"},
    "added": {"done"},
    "done": {"delta", "completed"},
    "committed delta": {"delta", "completed"},
    "over": set(),
}
"""Which event of an item may follow which."""


def check_items(sent: list[dict[str, Any]]) -> None:
    """The events of each item come in order, and its transcript is the text of its deltas."""
    last: dict[str, str] = {}
    text: dict[str, str] = {}
    committed: list[str] = []
    for event in sent:
        item = event.get("item_id") or event.get("item", {}).get("id")
        if item is None:
            continue
        kind = event["type"].rpartition(".")[2]
        assert kind in AFTER[last.get(item)], (last.get(item), event)
        last[item] = "committed delta" if kind == "delta" and item in committed else kind
        if kind == "committed":
            assert event["previous_item_id"] == (committed[-1] if committed else None)
            committed.append(item)
        elif kind == "delta":
            text[item] = text.get(item, "") + event["delta"]
        elif kind == "completed":
            assert event["transcript"] == text.get(item, "") == " ".join(word["word"] for word in event["words"])
            last[item] = "over"
    assert all(last[item] == "over" for item in committed)


@pytest.mark.parametrize("kind_of_client", CLIENTS)
@settings(max_examples=80, deadline=None)
@given(st.data(), st.booleans())
def test_legal_messages_are_never_an_error(kind_of_client: str, data: st.DataObject, at_once: bool) -> None:
    make, samples = CLIENTS[kind_of_client]
    client = make()
    assert tables.messages(ORDER) == sorted(samples)
    sequence = data.draw(tables.sequences(ORDER))
    messages = [data.draw(st.sampled_from(samples[kind])) for kind in sequence]
    (client.send_at_once if at_once else client.send)(*messages)
    assert "error" not in kinds(client.sent)
    if client.session is not None:
        client.finish()
    check_items(client.sent)


@pytest.mark.parametrize("kind_of_client", CLIENTS)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_illegal_messages_are_errors_and_change_nothing(kind_of_client: str, data: st.DataObject) -> None:
    make, samples = CLIENTS[kind_of_client]
    client, state = make(), "no audio yet"
    for _ in range(data.draw(st.integers(1, 8))):
        kind = data.draw(st.sampled_from(sorted(samples)))
        sent = data.draw(st.sampled_from(samples[kind]))
        if kind == "session.update with another model" and any(one.model == "other" for one in client.opened):
            continue  # it is not another one
        answers = client.send(sent)
        if kind in ORDER[state]:
            assert "error" not in kinds(answers)
            state = ORDER[state][kind]
        else:
            assert kinds(answers) == ["error"]
    check_items([one for one in client.sent if one["type"] != "error"])


@given(st.sampled_from(AUDIO))
def test_the_audio_of_a_call_comes_from_its_track(sent: str) -> None:
    client = call()
    assert "from its track" in client.send(sent)[0]["error"]["message"]
    assert client.opened == []


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 30), st.lists(st.integers(0, 150_000), max_size=8))
def test_words_and_turns_do_not_depend_on_how_the_audio_is_cut(seed: int, cuts: list[int]) -> None:
    audio_S = np.concatenate([speech(seed, words=4), silence(15), speech(seed + 1, words=3), silence(15)])
    audio_S = (audio_S * 32767).round().astype(np.int16).astype(np.float32) / 32767
    runner = ScriptRunner()
    alone = [word.text for word in words_of(drive(new_session(runner), runner, [audio_S]))]
    results = []
    for pieces in ([audio_S], np.split(audio_S, sorted(cuts))):
        client = ga()
        answers = client.send_at_once(*map(append, pieces), COMMIT)
        results.append([{**one, "event_id": None} for one in answers])
        assert " ".join(texts(answers)).split() == alone
    assert results[0] == results[1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "session", "audio", "input", "turn_detection", "format", "model", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.text(max_size=30)
        | JSON.map(json.dumps)
        | JSON.map(lambda value: message("session.update", session=value))
        | JSON.map(lambda value: message("transcription_session.update", session=value))
        | JSON.map(lambda value: message("input_audio_buffer.append", audio=value))
        | st.sampled_from([COMMIT, CLEAR, AUDIO[1]]),
        max_size=6,
    )
)
def test_any_messages_are_actions_or_an_error_event(messages: list[str]) -> None:
    client = ga()
    for one in messages:
        client.send(one)
    assert all(isinstance(one, Open) for one in client.opened)
