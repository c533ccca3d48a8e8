"""OpenAI's Realtime transcription sessions: the order of events, ids, times, commits, turns and errors."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from tests.dialects.realtime.conversation import (
    COMPLETED,
    DELTA,
    Conversation,
    append,
    kinds,
    message,
    request,
    texts,
    update,
)
from tests.fakes import silence, sound_of

from slipstream.dialects.models import UnknownModel
from slipstream.dialects.protocol import CloseCode, ProtocolError
from slipstream.dialects.realtime import open_dialect
from slipstream.dialects.realtime.transcription import TranscriptionDialect

COMMIT, CLEAR = message("input_audio_buffer.commit"), message("input_audio_buffer.clear")
MANUAL = update(turn_detection=None)
FOX = append(np.concatenate([sound_of("fox", 15), silence(20)]))
DOG = append(np.concatenate([sound_of("dog", 15), silence(20)]))


def ga() -> Conversation:
    return Conversation(TranscriptionDialect(request(("intent", "transcription"))))


def beta() -> Conversation:
    return Conversation(TranscriptionDialect(request(), beta=True))


def order_of(messages: list[dict[str, Any]]) -> list[str]:
    """The types of the messages, each run of deltas once."""
    return [kind for kind, _ in groupby(kinds(messages))]


# ------------------------------------------------------------------------------------------------------------ sessions


def test_a_session_is_described_and_takes_no_slot_before_the_first_message() -> None:
    client = ga()
    created = client.sent[0]
    assert created["type"] == "session.created"
    session = created["session"]
    assert session["id"] == "sess_7f"
    assert session["object"] == "realtime.transcription_session"
    assert session["expires_at"] == 1_700_000_000 + 3600
    assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24_000}
    assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 500
    assert client.opened == []
    client.send(MANUAL)
    assert [opened.model for opened in client.opened] == ["script"]


def test_absent_fields_keep_their_value_and_null_clears() -> None:
    client = ga()
    detection = {"type": "server_vad", "threshold": 0.7, "silence_duration_ms": 300}
    client.send(update(turn_detection=detection, transcription={"language": "fr"}))
    updated = client.send(update(turn_detection={"type": "server_vad", "silence_duration_ms": 900}))[0]
    assert updated["type"] == "session.updated"
    shown = updated["session"]["audio"]["input"]
    assert (shown["turn_detection"]["threshold"], shown["turn_detection"]["silence_duration_ms"]) == (0.7, 900)
    assert shown["transcription"]["language"] == "fr"
    assert client.send(MANUAL)[0]["session"]["audio"]["input"]["turn_detection"] is None


def test_a_commit_stops_speech_that_began_before_turn_detection_was_switched_off() -> None:
    client = ga()
    assert "input_audio_buffer.speech_started" in kinds(client.send(append(sound_of("fox", 9))))
    answers = kinds(client.send(MANUAL, COMMIT))
    assert answers[1:3] == ["input_audio_buffer.speech_stopped", "input_audio_buffer.committed"]


def test_the_languages_of_a_session_are_in_its_items() -> None:
    client = ga()
    client.send(update(turn_detection=None, transcription={"language": "fr"}))
    assert client.opened[0].options.hints.languages == ("fr",)
    completed = next(one for one in client.send(FOX, COMMIT) if one["type"] == COMPLETED)
    assert completed["languages"] == [{"code": "fr"}]
    assert [word["language"] for word in completed["words"]] == ["fr"]


def test_the_model_can_change_before_audio_only() -> None:
    client = ga()
    shown = client.send(update(transcription={"model": "other"}))[0]["session"]
    assert shown["audio"]["input"]["transcription"]["model"] == "other"
    client.send(FOX)
    assert [opened.model for opened in client.opened] == ["other"]
    error = client.send(update(transcription={"model": "script"}))[0]["error"]
    assert "another model" in error["message"]
    assert client.send(update(transcription={"model": "other", "language": "en"}))[0]["type"] == "session.updated"


def test_a_delay_level_has_no_effect_and_is_reported_as_null() -> None:
    shown = ga().send(update(transcription={"delay": "low"}))[0]["session"]
    assert shown["audio"]["input"]["transcription"]["delay"] is None


def test_eagerness_sets_the_threshold_and_the_longest_wait() -> None:
    turns = []
    for eagerness in ("low", "auto", "medium", "high"):
        client = ga()
        client.send(update(turn_detection={"type": "semantic_vad", "eagerness": eagerness}))
        turns.append(client.opened[0].options.turns)
    assert [turn and turn.wait_seconds for turn in turns] == [8.0, 4.0, 4.0, 2.0]
    assert [turn and turn.end_above for turn in turns] == pytest.approx([0.8, 0.6, 0.6, 0.45])


# ------------------------------------------------------------------------------------------------- turns and commits


@pytest.mark.parametrize("at_once", [False, True])
def test_a_commit_flushes_and_completes_the_item(at_once: bool) -> None:
    client = ga()
    send = client.send_at_once if at_once else client.send
    answers = send(MANUAL, FOX, COMMIT, DOG, COMMIT)
    assert texts(answers) == ["fox", "dog"]
    committed = [one for one in answers if one["type"] == "input_audio_buffer.committed"]
    first, second = (one["item_id"] for one in committed)
    assert [one["previous_item_id"] for one in committed] == [None, first]
    assert [one["item_id"] for one in answers if one["type"] == COMPLETED] == [first, second]
    done = next(one for one in answers if one["type"] == COMPLETED)
    assert done["usage"] == {"type": "duration", "seconds": 2.8}
    assert [(word["word"], word["start"]) for word in done["words"]] == [("fox", 0.0)]
    assert done["words"][0]["confidence"] > 0
    assert len({one["event_id"] for one in client.sent}) == len(client.sent)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("detection", [{"type": "server_vad"}, {"type": "semantic_vad", "eagerness": "medium"}])
def test_events_of_turns_come_in_order(at_once: bool, detection: dict[str, Any]) -> None:
    client = ga()
    quiet = append(silence(10))
    answers = (client.send_at_once if at_once else client.send)(update(turn_detection=detection), quiet, FOX, DOG)[1:]
    one_turn = [
        "input_audio_buffer.speech_started",
        DELTA,
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        COMPLETED,
    ]
    assert order_of(answers) == one_turn * 2
    assert texts(answers) == ["fox", "dog"]
    for turn, started in zip(("fox", "dog"), (10, 45), strict=True):
        ids = {one.get("item_id") or one["item"]["id"] for one in answers[: len(one_turn)]}
        assert len(ids) == 1, turn
        prefix = 300 if detection["type"] == "server_vad" else 0
        assert answers[0]["audio_start_ms"] == started * 80 - prefix
        assert answers[2]["audio_end_ms"] >= (started + 15) * 80
        answers = answers[len(one_turn) :]


def test_text_that_a_flush_brings_comes_after_the_commit() -> None:
    client = ga()
    answers = client.send(update(turn_detection={"type": "server_vad", "silence_duration_ms": 160}), FOX)[1:]
    assert order_of(answers)[:3] == ["input_audio_buffer.speech_started", DELTA, "input_audio_buffer.speech_stopped"]
    answers = client.send(append(sound_of("sea", 3)), append(silence(4)))
    assert order_of(answers)[-2:] == [DELTA, COMPLETED]


def test_a_commit_while_turns_are_detected_ends_the_turn() -> None:
    client = ga()
    answers = client.send(append(np.concatenate([sound_of("fox", 15), silence(2)])), COMMIT)
    assert texts(answers) == ["fox"]
    assert kinds(answers).count("input_audio_buffer.speech_stopped") == 1
    assert texts(client.send(DOG, append(silence(5)), COMMIT)) == ["dog", ""]


def test_a_clear_drops_the_buffer_and_keeps_what_was_committed() -> None:
    client = ga()
    answers = client.send_at_once(MANUAL, FOX, COMMIT, DOG, CLEAR, append(sound_of("sea", 15)), COMMIT)
    assert texts(answers) == ["fox", "sea"]
    assert kinds(answers).count("input_audio_buffer.cleared") == 1


def test_turns_in_cleared_audio_are_dropped() -> None:
    client = ga()
    answers = client.send_at_once(update(), FOX, CLEAR, DOG)
    assert texts(answers) == ["dog"]
    assert kinds(answers).count("input_audio_buffer.speech_started") == 1


def test_turn_detection_can_be_switched_within_a_stream() -> None:
    client = ga()
    assert texts(client.send(MANUAL, FOX)) == []
    assert texts(client.send(update(turn_detection={"type": "server_vad"}), DOG)) == ["fox dog"]
    assert texts(client.send(MANUAL, FOX, COMMIT)) == ["fox"]


def test_a_long_silence_commits_an_empty_item() -> None:
    client = ga()
    client.send(update(turn_detection={"type": "server_vad", "idle_timeout_ms": 5000}), FOX)
    answers = client.send(append(silence(75)))
    assert order_of(answers) == [
        "input_audio_buffer.timeout_triggered",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        COMPLETED,
    ]
    assert answers[0]["audio_end_ms"] - answers[0]["audio_start_ms"] == pytest.approx(5000, abs=80)


def test_the_end_of_a_stream_completes_what_is_open() -> None:
    client = ga()
    client.send(MANUAL, append(sound_of("fox", 15)))
    client.finish()
    assert texts(client.sent) == ["fox"]


def test_logprobs_come_where_they_are_included() -> None:
    client = ga()
    include = ["item.input_audio_transcription.logprobs"]
    client.send(MANUAL, message("session.update", session={"include": include}))
    answers = client.send(FOX, COMMIT)
    (delta,) = (one for one in answers if one["type"] == DELTA)
    assert delta["logprobs"][0]["token"] == "fox"
    assert bytes(delta["logprobs"][0]["bytes"]) == b"fox"
    assert delta["logprobs"][0]["logprob"] <= 0
    assert [one["token"] for one in answers[-1]["logprobs"]] == ["fox"]


def test_the_beta_format() -> None:
    client = beta()
    assert client.sent[0]["type"] == "transcription_session.created"
    session = {"input_audio_format": "g711_ulaw", "turn_detection": None}
    updated = client.send(message("transcription_session.update", session=session))[0]
    assert updated["type"] == "transcription_session.updated"
    assert updated["session"]["input_audio_format"] == "g711_ulaw"
    answers = client.send(message("input_audio_buffer.append", audio="////" * 100), COMMIT)
    assert order_of(answers) == ["input_audio_buffer.committed", "conversation.item.created", COMPLETED]
    assert answers[-1]["usage"]["seconds"] == pytest.approx(300 / 8000, abs=1e-3)


def test_a_first_message_of_the_beta_format_selects_it() -> None:
    client = ga()
    updated = client.send(message("transcription_session.update", session={"modalities": ["text"]}))[0]
    assert updated["type"] == "transcription_session.updated"


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "code", "param", "part"),
    [
        ("", "invalid_json", None, "not a JSON message"),
        ("[" * 5000, "invalid_json", None, "not a JSON message"),
        ("[]", "invalid_json", None, "got list"),
        ("x" * 70_000, "invalid_json", None, "at most 65536 characters"),
        ("{}", "invalid_value", "type", "unknown type None"),
        (message("response.create"), "invalid_value", "type", "expected session.update, "),
        (message("session.update"), "invalid_value", "session", "expected an object"),
        (message("session.update", session={"type": "realtime"}), "invalid_value", "session.type", "transcription"),
        (message("session.update", session={"x": 1}), "unknown_parameter", "session.x", "unknown key 'x'"),
        (
            update(turn_detection={"threshold": 2}),
            "invalid_value",
            "session.audio.input.turn_detection.threshold",
            "less than or equal to 1",
        ),
        (update(format={"type": "audio/pcm", "rate": 16_000}), "invalid_value", "session.audio.input.format", "24000"),
        (
            update(transcription={"model": "gpt-4o-transcribe"}),
            "model_not_found",
            "session.audio.input.transcription.model",
            "this server has script, other",
        ),
        (message("input_audio_buffer.append"), "invalid_value", "audio", "base64"),
        (message("input_audio_buffer.append", audio="ab!="), "invalid_value", "audio", "not base64"),
        (message("input_audio_buffer.append", audio="éé=="), "invalid_value", "audio", "not base64"),
        (message("input_audio_buffer.append", audio=7), "invalid_value", "audio", "base64"),
        (COMMIT, "input_audio_buffer_commit_empty", None, "no audio yet"),
    ],
)
def test_an_invalid_message_is_answered_by_an_error(text: str, code: str, param: str | None, part: str) -> None:
    client = ga()
    answers = client.send(text)
    assert kinds(answers) == ["error"]
    error = answers[0]["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    assert part in error["message"]
    assert texts(client.send(MANUAL, FOX, COMMIT)) == ["fox"]  # the session is still open


def test_an_error_names_the_clients_event() -> None:
    client = ga()
    answer = client.send(message("input_audio_buffer.commit", event_id="mine"))[0]
    assert answer["error"]["event_id"] == "mine"
    assert client.send("{}")[0]["error"]["event_id"] is None


def test_binary_messages_are_refused() -> None:
    client = ga()
    (action,) = client.dialect.receive(b"\0\0")
    assert "not binary" in json.loads(action.message)["error"]["message"]  # type: ignore[union-attr]


def test_the_last_error_of_a_connection() -> None:
    sent = json.loads(ga().dialect.error("all 8 slots are in use", CloseCode.TRY_LATER))  # type: ignore[arg-type]
    assert sent["error"]["type"] == "server_error"
    assert sent["error"]["code"] == "try_later"


@pytest.mark.parametrize("query", [("intent", "conversation"), ("model", "gpt-4o-transcribe")])
def test_an_address_with_another_intent_or_model_is_refused(query: tuple[str, str]) -> None:
    with pytest.raises((ProtocolError, UnknownModel), match=r"transcription sessions only|unknown model"):
        open_dialect(request(query))
