"""Client secrets on a live server: `POST /v1/realtime/client_secrets`, and sessions that they open."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import ScriptRunner
from tests.server.harness import get, metric_samples, serving, wait_for
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from slipstream.connections.access import Access, Client
from slipstream.connections.keys import KeyRing, new_key

KEYS = KeyRing.of(["secret", "another"])
PATH = "/v1/realtime/client_secrets"


def create(http: str, body: Any, key: str = "secret") -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, content, _ = get(http + PATH, data, authorization=f"Bearer {key}", content_type="application/json")
    return status, json.loads(content)


def secret_of(http: str, key: str = "secret", **audio: Any) -> str:
    status, body = create(http, {"session": {"type": "transcription", "audio": {"input": audio}}}, key)
    assert status == 200, body
    value: str = body["value"]
    return value


def page(ws: str, secret: str, address: str = "/v1/realtime", *more: str) -> connect:
    """Connect as a page does."""
    protocols: Any = ["realtime", f"openai-insecure-api-key.{secret}", *more]
    return connect(ws + address, subprotocols=protocols)


async def first(socket: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), 20))
    return message


def test_the_response_has_the_whole_session() -> None:
    session = {"type": "transcription", "audio": {"input": {"transcription": {"language": "fr"}}}}
    began = int(time.time())
    with serving(keys=KEYS) as running:
        status, body = create(running.http, {"session": session, "expires_after": {"seconds": 7200}})
        assert status == 200
        assert began + 7200 <= body["expires_at"] <= time.time() + 7200
        assert body["value"].startswith("ek_")
        assert body["session"]["id"].startswith("sess_")
        assert body["session"]["object"] == "realtime.transcription_session"
        assert body["session"]["audio"]["input"]["transcription"]["language"] == "fr"
        assert body["session"]["audio"]["input"]["transcription"]["model"] == "script"
        _, usual = create(running.http, {})
        assert began + 600 <= usual["expires_at"] <= time.time() + 600


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"expires_after": {"seconds": 9}}, None, "greater than or equal to 10"),
        ({"expires_after": {"seconds": 7201}}, None, "less than or equal to 7200"),
        ({"expires_after": {"seconds": 60.5}}, None, "whole number"),
        ({"expires_after": {"anchor": "now"}}, None, "anchor"),
        ({"expire_after": {}}, None, "did you mean 'expires_after'"),
        ({"session": []}, None, "session"),
        ({"session": {"type": "realtime", "model": "gpt-realtime"}}, "session.type", "only 'transcription'"),
        ({"session": {"audio": {"input": {"rate": 1}}}}, "session.audio.input.rate", "unknown key 'rate'"),
        (
            {"session": {"audio": {"input": {"transcription": {"model": "other"}}}}},
            "session.audio.input.transcription.model",
            "unknown model 'other'",
        ),
        (
            {"session": {"audio": {"input": {"transcription": {"language": "tongue"}}}}},
            "session.audio.input.transcription",
            "ISO 639-1",
        ),
        (
            {"session": {"audio": {"input": {"transcription": {"prompt": "a" * 4096}}}}},
            "session",
            "the maximum is 4096",
        ),
        ({"session": {"id": [[[[1]]]] * 1100}}, "session", "the maximum is 4096"),
        ([], None, "not a JSON object"),
        (b"", None, "not JSON"),
        (b'{"session":' + b'{"audio":' * 1000, None, "not JSON"),
    ],
)
def test_a_request_that_is_refused(body: Any, param: str | None, says: str) -> None:
    with serving(keys=KEYS) as running:
        status, answer = create(running.http, body)
        assert (status, answer["error"]["type"], answer["error"]["param"]) == (400, "invalid_request_error", param)
        assert says in answer["error"]["message"]
        assert create(running.http, b" " * (17 << 10))[0] == 413


def test_a_session_begins_as_its_client_secret_asked() -> None:
    with serving(keys=KEYS, accept_any=True) as running:
        secret = secret_of(running.http, turn_detection=None, transcription={"model": "gpt-x", "keywords": ["Marsh"]})

        async def talk() -> list[dict[str, Any]]:
            created = []
            for address in ("/v1/realtime", "/v1/realtime?intent=transcription&model=script"):
                async with page(running.ws, secret, address) as socket:
                    created.append(await first(socket))
                    assert socket.subprotocol == "realtime"
            async with page(running.ws, secret, "/v1/realtime", "openai-beta.realtime-v1") as socket:
                created.append(await first(socket))
            return created

        *sessions, beta = asyncio.run(talk())
    for created in sessions:
        assert created["type"] == "session.created"
        assert created["session"]["audio"]["input"]["turn_detection"] is None
        assert created["session"]["audio"]["input"]["transcription"]["model"] == "script"
        assert created["session"]["audio"]["input"]["transcription"]["keywords"] == ["Marsh"]
    assert beta["type"] == "transcription_session.created"
    assert beta["session"]["turn_detection"] is None


def test_a_client_secret_opens_nothing_else() -> None:
    with serving(keys=KEYS) as running:
        secret = secret_of(running.http)
        assert create(running.http, {}, secret)[0] == 401
        for path in ("/v1/models", "/v1/info", "/metrics"):
            assert get(running.http + path, authorization=f"Bearer {secret}")[0] == 401
        for path in ("/v1/whip", "/v1/audio/transcriptions", "/v1/realtime/calls/1/hangup"):
            assert get(running.http + path, b"", authorization=f"Bearer {secret}")[0] == 401

        async def talk() -> None:
            for path in ("/v1/stream", "/v1/listen", "/api/asr-streaming", "/v1/twilio"):
                with pytest.raises(InvalidStatus, match="401"):
                    async with page(running.ws, secret, path):
                        pass

        asyncio.run(talk())


def test_an_expired_client_secret_is_named() -> None:
    with serving(keys=KEYS) as running:
        old = Access("127.0.0.1", KEYS).client_secret(Client(key=KEYS.find("secret")), int(time.time()) - 1, {})

        async def refusal(secret: str) -> tuple[int, str]:
            with pytest.raises(InvalidStatus) as refused:
                async with page(running.ws, secret):
                    pass
            return refused.value.response.status_code, refused.value.response.body.decode()

        assert asyncio.run(refusal(old)) == (401, "the client secret has expired")
        status, reason = asyncio.run(refusal(old[:-2]))
        assert status == 401
        assert "no valid key" in reason
        status, body, _ = get(f"{running.http}/v1/realtime/calls", b"", authorization=f"Bearer {old}")
        assert (status, body) == (401, b"the client secret has expired")


def test_sessions_count_for_the_key_that_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (key, line), (other, other_line) = new_key("desk", streams=1), new_key("phone")
    file = tmp_path / "keys"
    file.write_text(f"{line}\n{other_line}\n")
    with serving(ScriptRunner(slots=4), keys=KeyRing.read(file)) as running, caplog.at_level("INFO"):
        secret, others = secret_of(running.http, key), secret_of(running.http, other)

        async def talk() -> None:
            async with page(running.ws, secret) as socket:
                await first(socket)
                for refused in (secret, key):
                    with pytest.raises(InvalidStatus, match="429"):
                        async with page(running.ws, refused):
                            pass
                async with page(running.ws, others) as another:
                    await first(another)

        asyncio.run(talk())
        closed = {getattr(record, "client", None) for record in caplog.records if record.message == "stream closed"}
        assert closed == {"desk", "phone"}
        refusals = metric_samples(get(f"{running.http}/metrics", authorization=f"Bearer {key}")[1].decode())
        assert any(value == 2 for name, value in refusals.items() if "429" in name)
        file.write_text(other_line)
        running.server.reload()

        async def again() -> None:
            with pytest.raises(InvalidStatus, match="401"):
                async with page(running.ws, secret):
                    pass
            async with page(running.ws, others) as socket:
                await first(socket)

        asyncio.run(again())


@pytest.mark.parametrize("keys", [KEYS, None])
def test_another_process_with_the_same_keys_accepts_it(keys: KeyRing | None) -> None:
    with serving(keys=keys) as running:
        secret = secret_of(running.http, turn_detection=None)
    with serving(keys=KeyRing.of(["secret"]) if keys else None) as restarted:

        async def talk() -> dict[str, Any]:
            async with page(restarted.ws, secret) as socket:
                return await first(socket)

        assert asyncio.run(talk())["session"]["audio"]["input"]["turn_detection"] is None


def test_a_model_that_the_server_no_longer_has() -> None:
    with serving(keys=KEYS) as running:
        session: Mapping[str, Any] = {"audio": {"input": {"transcription": {"model": "gone"}}}}
        secret = running.service.access.client_secret(Client(key=KEYS.find("secret")), int(time.time()) + 60, session)

        async def talk() -> None:
            with pytest.raises(InvalidStatus, match="400") as refused:
                async with page(running.ws, secret):
                    pass
            assert b"the client secret: unknown model 'gone'" in refused.value.response.body
            async with page(running.ws, secret, "/v1/realtime?model=script") as socket:
                await first(socket)

        asyncio.run(talk())
        wait_for(lambda: running.engine.active == 0)
