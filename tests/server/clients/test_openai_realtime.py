"""The package `openai`, unchanged, on Realtime transcription sessions."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
import pytest
from tests.fakes import ScriptRunner, silence, sound_of
from tests.server.harness import chunks, serving
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from slipstream.arrays import FloatArray
from slipstream.connections.keys import KeyRing

openai = pytest.importorskip("openai")

FOX = np.concatenate([sound_of("fox", 15), silence(20)])
DOG = np.concatenate([sound_of("dog", 15), silence(20)])
DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"


def session(**audio: Any) -> dict[str, Any]:
    return {"type": "transcription", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24_000}, **audio}}}


def client(address: str, key: str = "any") -> Any:
    return openai.AsyncOpenAI(api_key=key, websocket_base_url=f"ws://{address}/v1", max_retries=0)


def base64_of(pcm_S: FloatArray) -> str:
    return base64.b64encode((pcm_S * 32767).round().astype("<i2").tobytes()).decode()


async def events_until(connection: Any, kind: str, count: int = 1) -> list[Any]:
    events: list[Any] = []
    while sum(event.type == kind for event in events) < count:
        events.append(await asyncio.wait_for(connection.recv(), 20))
    return events


def test_commits_in_the_ga_format() -> None:
    with serving() as running:

        async def talk() -> list[Any]:
            async with client(running.address).realtime.connect(extra_query={"intent": "transcription"}) as connection:
                (created,) = await events_until(connection, "session.created")
                assert created.session.type == "transcription"
                await connection.session.update(session=session(turn_detection=None))
                await events_until(connection, "session.updated")
                for audio_S in (FOX, DOG):
                    await connection.input_audio_buffer.append(audio=base64_of(audio_S))
                    await connection.input_audio_buffer.commit()
                return await events_until(connection, COMPLETED, 2)

        events = asyncio.run(talk())
    done = [event for event in events if event.type == COMPLETED]
    assert [event.transcript for event in done] == ["fox", "dog"]
    assert [event.usage.seconds for event in done] == [2.8, 2.8]
    assert [event.item_id for event in done] == [
        event.item_id for event in events if event.type == "input_audio_buffer.committed"
    ]
    assert done[0].words[0]["word"] == "fox"


@pytest.mark.parametrize("seconds_between", [0.0, 0.02])
@pytest.mark.parametrize("detection", [{"type": "server_vad"}, {"type": "semantic_vad", "eagerness": "high"}])
def test_turns_unpaced_and_paced(detection: dict[str, Any], seconds_between: float) -> None:
    with serving() as running:

        async def talk() -> list[Any]:
            async with client(running.address).realtime.connect(extra_query={"intent": "transcription"}) as connection:
                await connection.session.update(session=session(turn_detection=detection))
                for piece_S in chunks(np.concatenate([silence(5), FOX, DOG]), 1920):
                    await connection.input_audio_buffer.append(audio=base64_of(piece_S))
                    await asyncio.sleep(seconds_between)
                return await events_until(connection, COMPLETED, 2)

        events = asyncio.run(talk())
    kinds = [event.type.rpartition(".")[2] for event in events][2:]
    assert kinds == ["speech_started", "delta", "speech_stopped", "committed", "added", "done", "completed"] * 2
    assert [event.transcript for event in events if event.type == COMPLETED] == ["fox", "dog"]


def test_the_beta_format() -> None:
    with serving(accept_any=True) as running:

        async def talk() -> list[Any]:
            beta = client(running.address).beta.realtime
            async with beta.connect(model="gpt-4o-transcribe", extra_query={"intent": "transcription"}) as connection:
                await events_until(connection, "transcription_session.created")
                await connection.transcription_session.update(session={"turn_detection": None})
                await events_until(connection, "transcription_session.updated")
                await connection.input_audio_buffer.append(audio=base64_of(FOX))
                await connection.input_audio_buffer.commit()
                return await events_until(connection, COMPLETED)

        events = asyncio.run(talk())
    kinds = [event.type for event in events if event.type != DELTA]  # text comes before and after the commit
    assert kinds == ["input_audio_buffer.committed", "conversation.item.created", COMPLETED]
    assert events[-1].transcript == "fox"


def test_errors_leave_the_session_open() -> None:
    with serving() as running:

        async def talk() -> list[Any]:
            async with client(running.address).realtime.connect(extra_query={"intent": "transcription"}) as connection:
                await connection.session.update(session=session(transcription={"model": "gpt-4o-transcribe"}))
                await connection.input_audio_buffer.commit()
                await connection.response.create()
                errors = [event for event in await events_until(connection, "error", 3) if event.type == "error"]
                await connection.session.update(session=session(turn_detection=None))
                await connection.input_audio_buffer.append(audio=base64_of(FOX))
                await connection.input_audio_buffer.commit()
                assert (await events_until(connection, COMPLETED))[-1].transcript == "fox"
                return [event.error for event in errors]

        errors = asyncio.run(talk())
    assert [error.code for error in errors] == ["model_not_found", "input_audio_buffer_commit_empty", "invalid_value"]
    assert {error.type for error in errors} == {"invalid_request_error"}


def test_a_full_server_reports_an_error() -> None:
    with serving(ScriptRunner(slots=1)) as running:

        async def talk() -> Any:
            realtime = client(running.address).realtime
            async with realtime.connect() as first, realtime.connect() as second:
                await first.session.update(session=session())
                await events_until(first, "session.updated")
                await second.session.update(session=session())
                return (await events_until(second, "error"))[-1].error

        error = asyncio.run(talk())
    assert (error.type, error.code) == ("server_error", "try_later")


def test_keys_and_reconnection() -> None:
    with serving(keys=KeyRing.of(["secret"])) as running:

        async def talk() -> None:
            with pytest.raises(InvalidStatus, match="401"):
                async with client(running.address, "wrong").realtime.connect():
                    pass
            for _ in range(2):  # the second time after the connection was lost
                async with client(running.address, "secret").realtime.connect() as connection:
                    await connection.session.update(session=session(turn_detection=None))
                    await connection.input_audio_buffer.append(audio=base64_of(FOX))
                    await connection.input_audio_buffer.commit()
                    assert (await events_until(connection, COMPLETED))[-1].transcript == "fox"

        asyncio.run(talk())


@pytest.mark.parametrize("keys", [KeyRing.of(["secret"]), None])
def test_a_client_secret_for_a_page(keys: KeyRing | None) -> None:
    with serving(keys=keys) as running:
        owner = openai.OpenAI(api_key="secret", base_url=f"{running.http}/v1", max_retries=0)
        created = owner.realtime.client_secrets.create(
            expires_after={"anchor": "created_at", "seconds": 60},
            session=session(turn_detection=None, transcription={"language": "en"}),
        )
        assert created.value.startswith("ek_")
        assert created.session.type == "transcription"
        assert created.session.audio.input.transcription.language == "en"
        usual = owner.realtime.client_secrets.create()
        assert usual.expires_at - created.expires_at >= 540
        if keys is not None:
            for key in ("wrong", created.value):
                with pytest.raises(openai.AuthenticationError):
                    owner.with_options(api_key=key).realtime.client_secrets.create()
        with pytest.raises(openai.BadRequestError, match="only 'transcription'"):
            owner.realtime.client_secrets.create(session={"type": "realtime"})

        async def talk() -> None:
            for _ in range(2):  # a client secret opens any number of sessions
                async with client(running.address, created.value).realtime.connect() as connection:
                    (begun,) = await events_until(connection, "session.created")
                    assert begun.session.audio.input.turn_detection is None
                    await connection.input_audio_buffer.append(audio=base64_of(FOX))
                    await connection.input_audio_buffer.commit()
                    assert (await events_until(connection, COMPLETED))[-1].transcript == "fox"

        asyncio.run(talk())


def test_a_browsers_key_comes_as_a_subprotocol() -> None:
    with serving(keys=KeyRing.of(["secret"])) as running:

        async def talk() -> None:
            protocols: Any = ["realtime", "openai-insecure-api-key.secret"]
            async with connect(f"{running.ws}/v1/realtime?intent=transcription", subprotocols=protocols) as socket:
                assert socket.subprotocol == "realtime"
                assert "session.created" in str(await socket.recv())

        asyncio.run(talk())
