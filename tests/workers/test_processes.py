"""A server of two workers and two engines: as one process, and whole after the death of any of its processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.dialects.test_twilio import SID, at_8k, recording
from tests.fakes import ScriptRunner, speech, tiny_tokenizer
from tests.server.harness import RATE, get, metric_samples, solo, wait_for
from tests.server.http.test_uploads import wav
from tests.workers.serving import Case, Serving, serving
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from slipstream.arrays import FloatArray
from slipstream.client import ServerError, open_async_stream, transcribe
from slipstream.connections.keys import KeyRing, new_key
from slipstream.connections.limits import Limits
from slipstream.engine.engine import Engine
from slipstream.engine.options import SessionOptions
from slipstream.events import Final, Ready, Word
from slipstream.hints import Hints
from slipstream.workers.worker import Settings

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
PATIENCE = 60.0
SHARED = Path("/dev/shm")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    key, line = new_key("desk", streams=3)
    path.write_text(line)
    return path, key


@pytest.fixture(scope="module")
def server(keys: tuple[Path, str]) -> Iterator[Serving]:
    limits = Limits(drain_seconds=20.0, alternatives=2)
    settings = Settings("127.0.0.1", KeyRing.read(keys[0]), limits=limits, log_level="error")
    before = set(SHARED.iterdir())
    with serving(Case(settings, workers=2, engines=2, slots=4)) as running:
        yield running
    assert set(SHARED.iterdir()) == before


def samples(server: Serving, key: str) -> dict[str, float]:
    return metric_samples(get(f"http://{server.address}/metrics", kyutai_api_key=key)[1].decode())


def gone(process: int) -> bool:
    return not Path(f"/proc/{process}/fd").exists() or not os.listdir(f"/proc/{process}/fd")


def test_words_are_those_of_one_process_in_several_dialects(server: Serving, keys: tuple[Path, str]) -> None:
    audio_S = speech(seed=4, words=6)
    words = [(word.text, word.start, word.end) for word in solo(audio_S)]
    for _ in range(4):  # by any worker
        assert list(transcribe(f"http://{server.address}", [audio_S], key=keys[1]).words) == solo(audio_S)
    assert asyncio.run(plain_words(server, keys[1], audio_S)) == words
    for path in ("/api/asr-streaming", "/v1/audio/transcriptions?response_format=json"):
        status, body, _ = get(f"http://{server.address}/api/asr-streaming", wav(audio_S), kyutai_api_key=keys[1])
        assert (status, path[:1]) == (200, "/")
        assert all(text in body.decode() for text, _, _ in words[:3])


def test_alternatives_are_those_of_one_process_and_other_delays_are_refused(
    server: Serving, keys: tuple[Path, str]
) -> None:
    audio_S = speech(seed=4, words=6)
    with Engine(ScriptRunner(4), tiny_tokenizer()) as engine:
        session = engine.open(SessionOptions(hints=Hints(alternatives=2)))
        session.send(audio_S)
        session.finish()
        words = [asdict(event) for event in session if isinstance(event, Word)]
    assert any(word["alternatives"] for word in words)
    expected = [[word["text"], word["start"], word["end"], list(word["alternatives"])] for word in words]
    messages = asyncio.run(plain_messages(server, keys[1], audio_S, "&alternatives=5"))  # the limit is 2
    found = [[one["text"], one["start"], one["end"], one.get("alternatives", [])] for one in messages]
    assert found == expected
    with pytest.raises(InvalidStatus) as refused:
        asyncio.run(plain_messages(server, keys[1], audio_S, "&delay=1.6"))
    assert b"the model script has one delay, 0.48 s" in (refused.value.response.body or b"")


async def plain_words(server: Serving, key: str, audio_S: FloatArray) -> list[tuple[str, float, float]]:
    return [(one["text"], one["start"], one["end"]) for one in await plain_messages(server, key, audio_S)]


async def plain_messages(server: Serving, key: str, audio_S: FloatArray, query: str = "") -> list[dict[str, Any]]:
    address = f"ws://{server.address}/v1/stream?encoding=pcm_f32le&auth_id={key}{query}"
    async with asyncio.timeout(PATIENCE), connect(address, max_queue=None) as socket:
        await socket.send(audio_S.tobytes())
        await socket.send('{"type":"close"}')
        messages = [json.loads(message) async for message in socket]
    return [one for one in messages if one["type"] == "word"]


def test_a_client_secret_opens_sessions_on_every_worker(server: Serving, keys: tuple[Path, str]) -> None:
    body = json.dumps({"session": {"audio": {"input": {"transcription": {"language": "fr"}}}}}).encode()
    address = f"http://{server.address}/v1/realtime/client_secrets"
    asked = {"authorization": f"Bearer {keys[1]}", "content_type": "application/json"}
    secrets = [json.loads(get(address, body, **asked)[1])["value"] for _ in range(4)]  # by any worker
    changed = secrets[0][:-1] + ("A" if secrets[0][-1] != "A" else "Q")

    async def languages(secret: str) -> list[str]:
        """Open as many sessions as the key may: the kernel gives each connection to any worker."""
        found = []
        for _ in range(6):
            protocols: Any = ["realtime", f"openai-insecure-api-key.{secret}"]
            async with connect(f"ws://{server.address}/v1/realtime", subprotocols=protocols) as socket:
                created = json.loads(await asyncio.wait_for(socket.recv(), PATIENCE))
                found.append(created["session"]["audio"]["input"]["transcription"]["language"])
        return found

    for secret in secrets:
        assert asyncio.run(languages(secret)) == ["fr"] * 6
        assert get(address, body, authorization=f"Bearer {secret}", content_type="application/json")[0] == 401
    for _ in range(6):  # refused by both
        with pytest.raises(InvalidStatus) as refused:
            asyncio.run(languages(changed))
        assert refused.value.response.status_code == 401


def test_the_limit_of_a_key_and_the_metrics_count_all_workers(server: Serving, keys: tuple[Path, str]) -> None:
    before = samples(server, keys[1])

    async def fill() -> None:
        async with asyncio.timeout(PATIENCE):
            opened = [open_async_stream(f"http://{server.address}", key=keys[1]) for _ in range(3)]
            for one in opened:
                stream = await one.__aenter__()
                assert isinstance(await anext(aiter(stream)), Ready)
            now = await asyncio.to_thread(samples, server, keys[1])
            assert now['asr_open_channels{handler="all"}'] == 3
            assert now["slipstream_slots_used"] == 3
            assert now["slipstream_slots"] == 8
            with pytest.raises(ServerError, match="429"):
                async with open_async_stream(f"http://{server.address}", key=keys[1]):
                    pass
            for one in opened:
                await one.__aexit__(None, None, None)

    asyncio.run(fill())
    wait_for(lambda: samples(server, keys[1])["slipstream_slots_used"] == 0)
    after = samples(server, keys[1])
    assert after['asr_connect{handler="all"}'] - before['asr_connect{handler="all"}'] == 3
    assert after['slipstream_refusals_total{status="429"}'] == 1
    assert after["asr_model_step_duration_count"] >= before["asr_model_step_duration_count"]


def test_a_call_reaches_a_reader_on_any_worker(server: Serving, keys: tuple[Path, str]) -> None:
    audio_S = at_8k(speech(seed=2, words=3))

    async def run() -> list[list[dict[str, object]]]:
        async with asyncio.timeout(PATIENCE):
            readers = []
            for _ in range(3):
                address = f"ws://{server.address}/v1/calls?id={SID}&auth_id={keys[1]}"
                readers.append(await connect(address))
            async with connect(f"ws://{server.address}/v1/twilio?auth_id={keys[1]}") as socket:
                for message in recording({"inbound": audio_S}):
                    await socket.send(json.dumps(message))
                received = []
                for reader in readers:
                    received.append([json.loads(message) async for message in reader])
                return received

    allow_nine(server, keys)
    first, *others = asyncio.run(run())
    assert [message for message in first if message["type"] == "word"]
    assert all(messages == first for messages in others)


def allow_nine(server: Serving, keys: tuple[Path, str]) -> None:
    """Let the key have nine streams at the same time instead of three."""
    keys[0].write_text(keys[0].read_text().replace("streams=3", "streams=9"))
    server.process.send_signal(signal.SIGHUP)  # all workers read the keys again
    wait_for(lambda: all(asyncio.run(accepts_four(server, keys[1])) for _ in range(4)), PATIENCE)


async def accepts_four(server: Serving, key: str) -> bool:
    """Whether four streams of a key may be open."""
    async with contextlib.AsyncExitStack() as streams:
        try:
            for _ in range(4):
                await streams.enter_async_context(open_async_stream(f"http://{server.address}", key=key))
        except ServerError:  # 429
            return False
        return True


def test_a_dead_worker_loses_only_its_own_streams(server: Serving, keys: tuple[Path, str]) -> None:
    audio_S = speech(seed=7, words=6)
    frames = len(audio_S) // 2

    async def run() -> tuple[int, int]:
        async with asyncio.timeout(PATIENCE):
            streams = [open_async_stream(f"http://{server.address}", key=keys[1]) for _ in range(6)]
            opened = [await one.__aenter__() for one in streams]
            events = [aiter(stream) for stream in opened]
            for stream, event in zip(opened, events, strict=True):
                await anext(event)
                await stream.send(audio_S[:frames])
            victim = server.children("worker")[0]
            os.kill(victim, signal.SIGKILL)
            whole = lost = 0
            for stream, event in zip(opened, events, strict=True):
                try:
                    await stream.send(audio_S[frames:])
                    await stream.finish()
                    words = [one async for one in event if isinstance(one, Word)]
                except ServerError:
                    lost += 1
                else:
                    assert words == solo(audio_S)
                    whole += 1
            return whole, lost

    allow_nine(server, keys)
    whole, lost = asyncio.run(run())
    assert whole + lost == 6
    wait_for(lambda: len(server.children("worker")) == 2, PATIENCE)
    wait_for(lambda: samples(server, keys[1])["slipstream_slots_used"] == 0, PATIENCE)
    for _ in range(4):
        assert list(transcribe(f"http://{server.address}", [audio_S], key=keys[1]).words) == solo(audio_S)


def test_sigterm_finishes_the_streams_of_all_workers(server: Serving, keys: tuple[Path, str]) -> None:
    audio_S = speech(seed=9, words=4)

    async def run() -> list[float]:
        async with asyncio.timeout(PATIENCE):
            streams = [open_async_stream(f"http://{server.address}", key=keys[1]) for _ in range(4)]
            opened = [await one.__aenter__() for one in streams]
            events = [aiter(stream) for stream in opened]
            for stream, event in zip(opened, events, strict=True):
                await anext(event)
                await stream.send(audio_S)
            server.process.send_signal(signal.SIGTERM)
            finals = []
            for event in events:
                received = [one async for one in event]
                assert isinstance(received[-1], Final)
                accepted_S = audio_S[: round(received[-1].duration * RATE)]
                assert [one for one in received if isinstance(one, Word)] == solo(accepted_S)
                finals.append(received[-1].duration)
            return finals

    allow_nine(server, keys)
    assert len(asyncio.run(run())) == 4
    assert server.process.wait(PATIENCE) == 0


def test_a_stream_that_continues_on_another_worker_frees_its_slot() -> None:
    audio_S = speech(seed=4, words=3).astype("<f4")

    async def run(address: str) -> None:
        query = ""
        async with asyncio.timeout(PATIENCE):
            for _ in range(30):  # until a connection reaches the other worker
                async with connect(f"ws://{address}/v1/stream?encoding=pcm_f32le{query}") as socket:
                    ready = json.loads(await socket.recv())
                    if query and not ready["resumed"]:
                        break
                    await socket.send(audio_S.tobytes())
                    query = f"&resume={ready['session']}&received=1"
                    socket.transport.abort()
            else:
                raise AssertionError("the other worker got no connection")
        await asyncio.to_thread(wait_for, lambda: slots_used(address) == 0, PATIENCE)

    with serving(Case(Settings("127.0.0.1", resume_seconds=10 * PATIENCE, log_level="error"))) as running:
        asyncio.run(run(running.address))


def slots_used(address: str) -> float:
    return metric_samples(get(f"http://{address}/metrics")[1].decode())["slipstream_slots_used"]


@pytest.mark.parametrize("engine_dies", [False, True])
def test_no_connection_waits_for_a_worker_that_has_drained(engine_dies: bool) -> None:
    case = Case(Settings("127.0.0.1", log_level="critical"), step_seconds=0.1)
    with serving(case) as running, contextlib.ExitStack() as open_files:
        host, port = running.address.split(":")
        with socket.create_connection((host, int(port)), PATIENCE) as client:
            audio = wav(speech(seed=9, words=3))  # one worker has seconds of work, the other none
            head = f"POST /api/asr-streaming HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(audio)}"
            client.sendall(f"{head}\r\nContent-Type: audio/wav\r\n\r\n".encode() + audio)
            wait_for(lambda: slots_used(running.address) == 1, PATIENCE)
            running.process.send_signal(signal.SIGTERM)
            wait_for(lambda: len(running.children("worker")) == 1, PATIENCE)
            if engine_dies:
                os.kill(running.children("engine")[0], signal.SIGKILL)
            else:
                for _ in range(8):
                    with contextlib.suppress(ConnectionError):  # refused or reset: the client does not wait
                        late = open_files.enter_context(socket.create_connection((host, int(port)), 3))
                        late.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                        assert late.recv(4) in (b"HTTP", b"")
        assert running.process.wait(PATIENCE) == int(engine_dies)


@pytest.mark.parametrize("victim", ["engine", "parent"])
def test_the_death_of_an_engine_or_the_parent_ends_all_processes(victim: str) -> None:
    before = set(SHARED.iterdir())
    with serving(Case(Settings("127.0.0.1", log_level="error"), workers=1)) as running:
        processes = [*running.children("engine"), *running.children("worker")]
        assert len(processes) == 2
        os.kill(running.process.pid if victim == "parent" else processes[0], signal.SIGKILL)
        code = running.process.wait(PATIENCE)
        assert code == (-signal.SIGKILL if victim == "parent" else 1)
        wait_for(lambda: all(map(gone, processes)), PATIENCE)
    assert set(SHARED.iterdir()) == before
