"""Text to speech of a server with two workers: the model is in a separate process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.server.harness import get, wait_for
from tests.server.spoken import open_small
from tests.speaking import save_model, voice
from tests.workers.serving import Case, Serving, serving
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from slipstream.dialects.speech.kyutai import _pack
from slipstream.workers.worker import Settings

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
PATIENCE = 60.0
TEXT = "the quick brown fox"
SETTINGS = Settings("127.0.0.1", log_level="error")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Serving]:
    with serving(Case(SETTINGS, open_speaker=partial(open_small, folder, slots=4))) as running:
        yield running
    assert not running.errors


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, np.ndarray]:
    """The speech of each voice, each on a new model."""
    with open_small(folder).speaker as speaker:
        return {name: speaker.say(TEXT, name).samples for name in ("ann", "bob")}  # style: allow


def post(server: Serving, **fields: object) -> tuple[int, bytes]:
    body = json.dumps({"response_format": "pcm", "input": TEXT, **fields}).encode()
    return get(f"http://{server.address}/v1/audio/speech", body, content_type="application/json")[:2]


async def speak(server: Serving, name: str, messages: list[bytes | str] | None = None) -> tuple[np.ndarray, int | None]:
    async with connect(f"ws://{server.address}/api/tts_streaming?format=Pcm&voice={name}") as socket:
        for message in messages or [*(f"{word} " for word in TEXT.split()), b"\0"]:
            await socket.send(message)
        received = []
        with contextlib.suppress(ConnectionClosed):
            async for data in socket:
                assert isinstance(data, bytes)
                received.append(data)
        return np.frombuffer(b"".join(received), "<f4"), socket.close_code


def test_speech_is_that_of_one_process(server: Serving, alone: dict[str, np.ndarray]) -> None:
    async def all_speak() -> list[tuple[np.ndarray, int | None]]:
        return await asyncio.gather(*(speak(server, ("ann", "bob")[number % 2]) for number in range(8)))

    for number, (samples, code) in enumerate(asyncio.run(all_speak())):
        assert code == 1000
        np.testing.assert_allclose(samples, alone[("ann", "bob")[number % 2]], atol=1e-4)
    status, body = post(server, voice="bob")
    assert status == 200
    np.testing.assert_allclose(np.frombuffer(body, "<i2") / 32767, alone["bob"], atol=1e-4)


def test_a_voice_of_the_client(server: Serving, alone: dict[str, np.ndarray]) -> None:
    embedding = voice(1).embeddings[0][None]
    sent = _pack({"type": "Voice", "embeddings": embedding.ravel().tolist(), "shape": list(embedding.shape)})
    samples, _ = asyncio.run(speak(server, "", [sent, TEXT, b"\0"]))
    np.testing.assert_allclose(samples, alone["bob"], atol=1e-4)


def test_an_unknown_voice_is_refused(server: Serving) -> None:
    status, body = post(server, voice="carl")
    assert (status, "unknown voice 'carl'" in json.loads(body)["error"]["message"]) == (400, True)
    assert json.loads(post(server, voice="<break>")[1])["error"]["param"] == "voice"
    assert asyncio.run(speak(server, "carl"))[1] == 1007


def test_a_text_that_cannot_be_read_ends_only_its_own_session(server: Serving) -> None:
    for _ in range(4):  # on any worker
        status, body = post(server, voice="ann", input=f'<break time="{"9" * 400}s"/>')
        error = json.loads(body)["error"]
        assert (status, error["param"], "at most 60 s" in error["message"]) == (400, "input", True)
        assert asyncio.run(speak(server, "ann", ["the ", '<break time="61s"/>', b"\0"]))[1] == 1007
    assert post(server, voice="ann")[0] == 200


def test_clients_that_vanish_free_their_slots(server: Serving) -> None:
    async def vanish(number: int) -> None:
        socket = await connect(f"ws://{server.address}/api/tts_streaming?format=Pcm&voice=ann")
        await socket.send(f"{TEXT} " * 40)
        if number % 2:
            await asyncio.wait_for(socket.recv(), PATIENCE)
        socket.transport.abort()

    async def all_vanish() -> None:
        await asyncio.gather(*(vanish(number) for number in range(8)))

    asyncio.run(all_vanish())
    assert post(server, voice="ann")[0] == 200  # no slot would be free otherwise


def test_a_dead_worker_loses_only_its_own_texts(folder: Path, alone: dict[str, np.ndarray]) -> None:
    with serving(Case(SETTINGS, workers=1, open_speaker=partial(open_small, folder, slots=1))) as running:

        async def lose() -> int | None:
            async with connect(f"ws://{running.address}/api/tts_streaming?format=Pcm&voice=ann") as socket:
                await socket.send(f"{TEXT} " * 400)
                await asyncio.wait_for(socket.recv(), PATIENCE)
                os.kill(running.children("worker")[0], signal.SIGKILL)
                with contextlib.suppress(ConnectionClosed):
                    async for _ in socket:
                        pass
                return socket.close_code

        assert asyncio.run(lose()) == 1006

        def answers() -> bool:
            try:
                return post(running, voice="bob")[0] == 200
            except OSError:
                return False  # the worker is being restarted

        wait_for(answers, PATIENCE)
        np.testing.assert_allclose(np.frombuffer(post(running, voice="bob")[1], "<i2") / 32767, alone["bob"], atol=1e-4)


def test_too_many_texts(folder: Path) -> None:
    opened = partial(open_small, folder, slots=1, max_waiting=0)
    with serving(Case(SETTINGS, workers=1, open_speaker=opened)) as running:

        async def fill() -> tuple[int, int | None]:
            async with connect(f"ws://{running.address}/api/tts_streaming?format=Pcm&voice=ann") as socket:
                await socket.send(f"{TEXT} " * 400)
                await asyncio.wait_for(socket.recv(), PATIENCE)
                status, _ = await asyncio.to_thread(post, running, voice="bob")
                return status, (await speak(running, "bob"))[1]

        assert asyncio.run(fill()) == (503, 1013)


def test_sigterm_finishes_the_text_so_far(folder: Path, alone: dict[str, np.ndarray]) -> None:
    with serving(Case(SETTINGS, workers=1, open_speaker=partial(open_small, folder))) as running:

        async def session() -> tuple[np.ndarray, int | None]:
            async with connect(f"ws://{running.address}/api/tts_streaming?format=Pcm&voice=ann") as socket:
                await socket.send(TEXT)
                received = [await asyncio.wait_for(socket.recv(), PATIENCE)]
                running.process.send_signal(signal.SIGTERM)
                with contextlib.suppress(ConnectionClosed):
                    async for data in socket:
                        received.append(data)
                return np.frombuffer(b"".join(received), "<f4"), socket.close_code

        samples, _ = asyncio.run(session())
        np.testing.assert_allclose(samples, alone["ann"], atol=1e-4)
        assert running.process.wait(PATIENCE) == 0


def test_a_model_that_cannot_be_opened_ends_the_server(tmp_path: Path) -> None:
    case = Case(SETTINGS, workers=1, open_speaker=partial(open_missing, tmp_path))
    with serving(case) as running:
        assert running.process.wait(PATIENCE) == 1
    assert any("no such voice here" in line for line in running.errors)


def open_missing(folder: Path) -> object:
    from slipstream.errors import CheckpointError

    raise CheckpointError(f"{folder}: no such voice here")
