"""A server with the built-in model is killed in the middle of a stream, and another one continues it."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slipstream.audio import load
from slipstream.client import ServerError, transcribe
from slipstream.events import Step, Word
from slipstream.resume import ResumableStream

SAMPLE = Path(__file__).parents[1] / "examples" / "sample.opus"
KILLED_AT_FRAME = 50


def serve(port: int) -> tuple[subprocess.Popen[str], str]:
    """Start the command, and return its process and address."""
    command = [sys.executable, "-m", "slipstream", "serve", "--port", str(port), "--backend", "onnx", "--slots", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    output = ""
    while not (found := re.search(r"Serving .* on (\S+)", output.replace("\n", " "))):
        line = process.stderr.readline()
        assert line, output
        output += line
    return process, found[1]


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


async def listen(address: str, samples_S: object, at_frame: Callable[[], None]) -> list[Word]:
    """The words of a recording; calls `at_frame` once, in its middle."""
    stream = ResumableStream(address)
    stream.send(samples_S)
    stream.finish()
    words: list[Word] = []
    reached = False
    while not stream.done:
        try:
            await stream.connect()
            async for event in stream:
                if isinstance(event, Word):
                    words.append(event)
                elif isinstance(event, Step) and event.index >= KILLED_AT_FRAME and not reached:
                    reached = True
                    at_frame()
        except ServerError:
            await asyncio.sleep(0.05)
    return words


def test_another_server_continues_with_the_same_words_and_times() -> None:
    samples_S = load(SAMPLE, 24_000)
    first, address = serve(0)
    servers = [first]

    def restart() -> None:
        kill(first)
        servers.append(serve(int(address.rpartition(":")[2]))[0])

    try:
        whole = transcribe(address, [samples_S]).words
        words = asyncio.run(listen(address, samples_S, restart))
    finally:
        for server in servers:
            kill(server)
    assert len(servers) == 2
    assert [word.text for word in words] == [word.text for word in whole]
    assert [word.start for word in words] == pytest.approx([word.start for word in whole], abs=0.17)
