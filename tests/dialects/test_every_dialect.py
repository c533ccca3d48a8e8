"""What holds in every dialect: a session's words do not depend on the dialect, nor on how its audio is cut."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from benchmarks.dialect_connection import connected
from benchmarks.dialects import CLIENTS, DialectClient
from tests.fakes import ScriptRunner, speech
from tests.server.harness import Running, serving, solo

from slipstream.arrays import FloatArray
from slipstream.audio import Resampler
from slipstream.dialects import TCP_DIALECTS


async def transcribe(running: Running, client: DialectClient, pieces: list[FloatArray]) -> list[str]:
    """The words of one connection that sends these pieces, as fast as the server takes them."""
    words: list[str] = []
    async with connected(client, running.ws, running.tcp_ports) as connection:
        for message in client.begin():
            await connection.send(message)
        for piece_S in pieces:
            for message in client.audio(piece_S):
                await connection.send(message)
        for message in client.finish():
            await connection.send(message)
        while not client.done:
            words += await asyncio.wait_for(connection.words(), 20)
    return words


def resampled(audio_S: FloatArray, rate: int, to: int) -> FloatArray:
    resampler = Resampler(rate, to)
    return np.concatenate([resampler.push(audio_S[np.newaxis])[0], resampler.flush()[0]])


def cut(audio_S: FloatArray, seed: int) -> list[FloatArray]:
    rng = np.random.default_rng(seed)
    borders = np.sort(rng.integers(0, len(audio_S), rng.integers(1, 40)))
    return np.split(audio_S, borders)


@pytest.mark.parametrize("name", CLIENTS)
def test_words_equal_those_of_the_session_alone(name: str) -> None:
    make = CLIENTS[name]
    recordings = [resampled(speech(seed=seed, words=6), 24_000, make.rate) for seed in range(3)]
    alone = [[word.text for word in solo(resampled(make.coded(audio_S), make.rate, 24_000))] for audio_S in recordings]
    with serving(ScriptRunner(slots=3), tcp=TCP_DIALECTS, accept_any=True) as running:

        async def all_at_once() -> list[list[str]]:
            streams = [transcribe(running, make(), cut(audio_S, seed)) for seed, audio_S in enumerate(recordings)]
            return await asyncio.gather(*streams)

        assert asyncio.run(all_at_once()) == alone
    assert all(alone)
