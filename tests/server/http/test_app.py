"""Everything but Kyutai's conversation: plain streams, whole files, limits, bad clients, the addresses."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from tests.fakes import ScriptRunner, sound_of, speech
from tests.server.harness import (
    RATE,
    audio_message,
    chunks,
    expected,
    get,
    kyutai,
    metric_samples,
    pack,
    receive,
    serving,
    solo,
    until,
    wait_for,
    words_received,
)
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from slipstream.arrays import FloatArray
from slipstream.client import Queued, ServerError, open_async_stream, open_stream, transcribe
from slipstream.connections.limits import Limits
from slipstream.errors import AudioError
from slipstream.events import EndOfTurn, Event, Final, MarkerReached, PartialWord, Ready, Step, Turn, Word
from slipstream.server.streams.stream import LiveStream

# ------------------------------------------------------------------------------------------------------- plain streams


def test_the_client_gets_the_words_of_a_solo_run() -> None:
    audio_S = speech(seed=1, words=10)
    with serving() as running:
        transcript = transcribe(running.http, chunks(audio_S, 5000))
    assert list(transcript.words) == solo(audio_S)
    assert transcript.duration == pytest.approx(len(audio_S) / RATE)
    assert (transcript.model, transcript.delay) == ("script", 6 / 12.5)
    assert len(transcript.turns) >= 1


def test_events_of_a_plain_stream() -> None:
    audio_S = np.concatenate([speech(seed=2, words=4), np.zeros(4 * RATE, np.float32), speech(seed=3, words=2)])

    async def client(address: str) -> list[Event | Queued]:
        async with open_async_stream(address) as stream:
            await stream.send(audio_S)
            await stream.flush(3)
            await stream.finish()
            return [event async for event in stream]

    with serving() as running:
        events = asyncio.run(client(running.http))
    kinds = [type(event) for event in events]
    assert kinds[0] is Ready
    assert kinds[-1] is Final
    assert {PartialWord, Word, Step, Turn, EndOfTurn, MarkerReached} <= set(kinds)
    assert kinds.index(MarkerReached) > max(i for i, kind in enumerate(kinds) if kind is Word)


def test_an_error_of_the_recording_is_raised() -> None:
    class BrokenDisk(Exception):
        pass

    def pieces() -> Iterator[FloatArray]:
        yield speech(seed=1, words=3)
        raise BrokenDisk

    with serving(ScriptRunner(slots=1)) as running:
        with pytest.raises(BrokenDisk):
            transcribe(running.http, pieces())
        wait_for(lambda: running.engine.active == 0)


def test_reading_a_stream_that_is_being_closed_is_an_error() -> None:
    async def client(address: str) -> None:
        async with open_async_stream(address) as stream:
            events = aiter(stream)
            await anext(events)
            closing = asyncio.create_task(stream._close())
            await asyncio.sleep(0)  # it waits for the server
            with pytest.raises(ServerError, match=r"^the stream was closed$"):
                await anext(events)
            await closing

    with serving() as running:
        asyncio.run(client(running.http))


def test_restart_in_the_plain_dialect() -> None:
    with serving() as running, open_stream(running.http) as stream:
        stream.send(speech(seed=4, words=20))
        stream.restart()
        stream.send(speech(seed=5, words=3))
        stream.finish()
        events = list(stream)
    last_ready = max(i for i, event in enumerate(events) if isinstance(event, Ready))
    words = [event for event in events[last_ready:] if isinstance(event, Word)]
    assert words == solo(speech(seed=5, words=3))


def test_a_stream_with_many_unread_events_closes_immediately() -> None:
    with serving() as running:
        with open_stream(running.http) as stream:
            stream.send(speech(seed=4, words=40))
            wait_for(lambda: running.service.metrics.words._value.get() >= 38)
            began = time.monotonic()
        assert time.monotonic() - began < 5  # the handshake alone would time out after 10 s


def test_telephone_audio_is_resampled() -> None:
    with serving() as running:
        transcript = transcribe(running.http, [np.full(8_000, 0.1, np.float32)], sample_rate=8_000)
    assert transcript.duration == 1.0


def test_a_wrong_format_is_refused_before_the_socket_opens() -> None:
    with (
        serving() as running,
        pytest.raises(ServerError, match="with status 400: sample_rate=5: expected at least 4000 Hz") as refused,
        open_stream(running.http, sample_rate=5),
    ):
        pass
    assert refused.value.code == 400


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/v1/stream?sampel_rate=8000", b"unknown parameter 'sampel_rate': expected encoding, sample_rate, "),
        ("/v1/stream?channels=1&channels=2", b"channels: expected one value, got 2"),
        ("/v1/calls?id=CA1&track=inbound", b"unknown parameter 'track': expected id, auth_id"),
        ("/v1/realtime?model=a&model=b", b"model: expected one value, got 2"),
    ],
)
def test_unknown_and_repeated_parameters_are_refused_before_the_socket_opens(path: str, reason: bytes) -> None:
    async def talk(url: str) -> None:
        with pytest.raises(InvalidStatus) as refused:
            async with connect(url):
                pass
        assert (refused.value.response.status_code, refused.value.response.body[: len(reason)]) == (400, reason)

    with serving() as running:
        asyncio.run(talk(f"{running.ws}{path}"))


@pytest.mark.parametrize("late", [bytes(960), b"\1", "not JSON", '{"type": "flush"}', '{"type": "close"}'])
def test_messages_after_close_are_ignored(late: bytes | str) -> None:
    """A client has audio in flight when it closes. The model lags 6 frames, so the last word comes after the close."""
    audio_S = np.concatenate([np.zeros(5 * 1920, np.float32), sound_of("hôpital", 3)])

    async def client(address: str) -> tuple[list[dict[str, Any]], int | None]:
        async with connect(f"ws://{address}/v1/stream?encoding=pcm_f32le") as socket:
            await socket.send(audio_S.tobytes())
            await socket.send('{"type": "close"}')
            await asyncio.sleep(0.005)
            await socket.send(late)
            return [json.loads(message) async for message in socket], socket.close_code

    with serving(ScriptRunner(slots=1, step_seconds=0.02)) as running:
        messages, code = asyncio.run(client(running.address))
    assert [message["text"] for message in messages if message["type"] == "word"] == ["hôpital"]
    assert messages[-1]["type"] == "done"
    assert code == 1000


def test_an_unreachable_server() -> None:
    with pytest.raises(ServerError, match="cannot be reached"), open_stream("http://127.0.0.1:9"):
        pass


def test_a_full_server_and_a_queue() -> None:
    runner = ScriptRunner(slots=1)
    with serving(runner) as running, open_stream(running.http), open_stream(running.http) as second:
        with pytest.raises(ServerError, match="slots are in use") as full:
            list(second)
        assert full.value.code == 1013
    with (
        serving(runner, queue_seconds=20) as running,
        open_stream(running.http) as first,
        open_stream(running.http) as second,
    ):
        second.send(speech(seed=1, words=3))
        events = iter(second)
        assert next(events) == Queued(1)
        first.finish()
        assert list(first)
        second.finish()
        assert [event for event in events if isinstance(event, Word)] == solo(speech(seed=1, words=3))


# -------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("limits", [Limits(session_seconds=0.5), Limits(idle_seconds=0.5)])
def test_a_stream_at_its_time_limit_is_finished_first(limits: Limits) -> None:
    audio_S = speech(seed=6, words=4)

    async def client(address: str) -> tuple[list[dict[str, Any]], int, str]:
        async with kyutai(address) as stream:
            await stream.send(audio_message(audio_S))
            messages = [await receive(stream)]
            await asyncio.wait_for(stream.wait_closed(), 10)
            messages += [message async for message in _left(stream)]
            return messages, stream.close_code or 0, stream.close_reason or ""

    with serving(limits=limits) as running:
        messages, code, reason = asyncio.run(client(running.address))
        wait_for(lambda: running.engine.active == 0)
    assert words_received(messages) == expected(solo(audio_S))
    assert code == 4408
    assert "0.5 s" in reason


async def _left(stream: Any) -> Any:
    with contextlib.suppress(ConnectionClosed):
        async for message in stream:
            yield msgpack.unpackb(message)


def test_a_flood_waits_and_loses_nothing() -> None:
    async def client(address: str) -> tuple[list[int], float]:
        async with kyutai(address) as stream:
            await receive(stream)
            began = time.monotonic()
            for id in range(100):
                await stream.send(pack(type="Marker", id=id))
            return [(await receive(stream))["id"] for _ in range(100)], time.monotonic() - began

    with serving(limits=Limits(messages_per_second=50)) as running:
        ids, seconds = asyncio.run(client(running.address))
    assert ids == list(range(100))
    assert seconds >= 0.9


def test_audio_beyond_the_buffer_waits_and_loses_nothing() -> None:
    audio_S = speech(seed=7, words=40)
    with serving(ScriptRunner(slots=1, step_seconds=0.002), limits=Limits(buffered_seconds=1.0)) as running:
        transcript = transcribe(running.http, [audio_S])
    assert list(transcript.words) == solo(audio_S)


def test_a_reader_too_slow_is_closed_and_its_slot_freed() -> None:
    limits = Limits(droppable_messages=5, unsent_messages=20)
    with serving(ScriptRunner(slots=1), limits=limits) as running:
        client = raw_websocket(running.address)
        # Each word is sent twice, so that the unread words alone overflow the outbox once the socket is full.
        words = websocket_frame(audio_message(speech(seed=8, words=400)))
        client.settimeout(0.2)
        with contextlib.suppress(OSError):  # until the server reads no more
            while True:
                client.sendall(words)
        wait_for(lambda: running.engine.active == 0, 20)
        client.close()
        assert list(transcribe(running.http, [speech(seed=9, words=3)]).words) == solo(speech(seed=9, words=3))


def test_a_client_that_disconnects_frees_its_slot() -> None:
    with serving(ScriptRunner(slots=1)) as running:
        for linger in (b"\0" * 8, b"\1\0\0\0\0\0\0\0"):  # an orderly end of TCP, and a reset; neither of WebSockets
            client = raw_websocket(running.address)
            client.sendall(websocket_frame(audio_message(speech(seed=1, words=2))))
            wait_for(lambda: running.engine.active == 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.close()
            wait_for(lambda: running.engine.active == 0)


def raw_websocket(address: str) -> socket.socket:
    host, _, port = address.partition(":")
    client = socket.create_connection((host, int(port)))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(
        f"GET /api/asr-streaming HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert client.recv(12) == b"HTTP/1.1 101"
    return client


def websocket_frame(payload: bytes) -> bytes:
    return b"\x82\xff" + len(payload).to_bytes(8, "big") + bytes(4) + payload


def test_a_model_that_fails_is_logged_and_stops_the_server(caplog: pytest.LogCaptureFixture) -> None:
    with serving(ScriptRunner(slots=1, crash_after=5)) as running:
        with pytest.raises(ServerError, match=r"^the server failed; try again$") as failed:
            transcribe(running.http, [speech(seed=1, words=5)])
        assert failed.value.code == 1011
        wait_for(lambda: running.server.should_exit)
    (record,) = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert "the device is on fire" in str(record.exc_info)


def test_parallel_streams_are_transcribed_as_if_alone() -> None:
    recordings = [speech(seed=seed, words=6) for seed in range(6)]
    transcribed: dict[int, list[Word]] = {}

    def run(number: int, address: str) -> None:
        transcribed[number] = list(transcribe(address, chunks(recordings[number], 1000 + 700 * number)).words)

    with serving(ScriptRunner(slots=6)) as running:
        threads = [threading.Thread(target=run, args=(number, running.http)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert transcribed == {number: solo(audio_S) for number, audio_S in enumerate(recordings)}


# ----------------------------------------------------------------------------------------------------- HTTP addresses


def test_information_about_the_server() -> None:
    with serving(ScriptRunner(slots=3)) as running, open_stream(running.http) as stream:
        stream.send(speech(seed=1, words=3))
        stream.flush()
        for event in stream:
            if isinstance(event, MarkerReached):
                break
        (module,) = json.loads(get(f"{running.http}/api/modules_info")[1])
        assert (module["type"], module["used_slots"], module["total_slots"]) == ("batched_asr", "1", "3")
        assert json.loads(get(f"{running.http}/api/build_info")[1])["name"] == "slipstream"
        info = json.loads(get(f"{running.http}/v1/info")[1])
        assert info == {"model": "script", "delay": 0.48, "models": ["script"], "needs_key": False}
        assert get(f"{running.http}/healthz")[:2] == (200, b"ok")
        assert get(f"{running.http}/readyz")[:2] == (200, b"ok")
        samples = metric_samples(get(f"{running.http}/metrics")[1].decode())
    assert samples['asr_connect{handler="all"}'] == 1
    assert samples['asr_open_channels{handler="all"}'] == 1
    assert samples["slipstream_words_total"] == 3
    assert samples["slipstream_flush_seconds_count"] >= 1
    assert "asr_model_step_duration_count" in samples
    assert "asr_connection_num_steps_count" in samples


def test_the_page_loads_nothing_from_elsewhere() -> None:
    with serving() as running:
        status, page, headers = get(f"{running.http}/")
        assert status == 200
        assert headers["content-security-policy"].startswith("default-src 'self'")
        for part in ("app.js", "slipstream/capture.js", "transcript.js", "style.css", "icon.svg"):
            status, body, _ = get(f"{running.http}/{part}")
            assert status == 200
            outside = body.replace(b"http://www.w3.org/2000/svg", b"").replace(b'replace("http", "ws")', b"")
            assert b"http" not in outside.replace(b"https", b"http")
        assert b"//" not in page
        assert get(f"{running.http}/../app.py")[0] == 404


def test_pages_of_other_origins_may_not_connect() -> None:
    with serving() as running:
        status, body, _ = get(f"{running.http}/api/asr-streaming", b"x", origin="https://evil.example")
        assert (status, b"evil.example" in body) == (403, True)

        async def client() -> None:
            async with connect(f"{running.ws}/v1/stream", origin="https://evil.example"):  # type: ignore[arg-type]
                pass

        with pytest.raises(Exception, match="HTTP 403"):
            asyncio.run(client())


# --------------------------------------------------------------------------------------------------------------- drain


def test_a_drain_sends_the_text_of_all_audio_and_refuses_new_streams() -> None:
    audio_S = speech(seed=1, words=8)

    async def client(address: str, stop: Any) -> tuple[list[dict[str, Any]], int]:
        async with kyutai(address) as stream:
            await stream.send(audio_message(audio_S))
            messages = await until(stream, "Step")
            stop()
            await asyncio.wait_for(stream.wait_closed(), 10)
            messages += [message async for message in _left(stream)]
            assert stream.close_reason == "the server is about to stop"
            return messages, stream.close_code or 0

    with serving(ScriptRunner(slots=2, step_seconds=0.001)) as running:
        messages, code = asyncio.run(client(running.address, lambda: running.server.handle_exit(15, None)))
    steps = [message for message in messages if message["type"] == "Step"]
    processed_S = audio_S[: len(audio_S) if len(steps) == len(audio_S) // 1920 else len(steps) * 1920]
    assert words_received(messages) == expected(solo(processed_S))
    assert len(words_received(messages)) > 0
    assert code == 1012


def test_a_drain_waits_for_clients_that_read_late() -> None:
    """A client that is still sending when the server stops must not be reset: it would lose what it has not read."""
    with serving(ScriptRunner(slots=1)) as running:
        client = raw_websocket(running.address)
        message = websocket_frame(audio_message(np.zeros(1920, np.float32)))
        for _ in range(20):
            client.sendall(message)
        wait_for(lambda: running.engine.active == 1)
        running.server.handle_exit(15, None)
        wait_for(lambda: running.engine.active == 0)
        for _ in range(5):
            time.sleep(0.1)
            client.sendall(message)
        body = b""
        while not body.endswith(b"the server is about to stop"):
            body += client.recv(65_536)
        client.close()


def test_ended_streams_free_everything() -> None:
    def alive() -> int:
        gc.collect()
        return sum(type(thing) is LiveStream for thing in gc.get_objects())

    with serving(ScriptRunner(slots=1)) as running:
        for _ in range(3):
            transcribe(running.http, [speech(seed=1, words=2)])
        wait_for(lambda: alive() == 0)


def test_the_client_refuses_a_single_array() -> None:
    with pytest.raises(AudioError, match=r"one array of shape \(1920,\): pass a list with it"):
        transcribe("http://127.0.0.1:9", np.zeros(1920, np.float32))


def test_the_example_of_the_guide_ends(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[3]
    guide = (root / "docs/guides/server.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(from slipstream.audio import load\n.*?)```", guide, re.DOTALL)
    with serving() as server:
        example = example.replace("http://127.0.0.1:8080", server.http)
        exec(example.replace("talk.mp3", str(root / "examples/sample.opus")), {})
    assert capsys.readouterr().out.splitlines()[-1].startswith("Final(")
