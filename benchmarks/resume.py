"""How often a stream that lost its server continues word for word: `python -m benchmarks.resume FILES`.

The files are joined to streams. Each one is transcribed without a loss. Then it is continued on a fresh slot from each
of `--losses`, as `ResumableStream` does: it sends `--context` seconds of audio that was final before, without and with
the text of the lost stream. A resumption is exact if the words of the next `--after` seconds are those without a loss.
It has caught up when the server has processed the audio that the lost stream had.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio import load
from slipstream.client import AsyncStream, Resumption, StreamEvent, open_async_stream
from slipstream.events import History, PartialWord, Step, Word
from slipstream.resume.text import FinalText

RATE = 24_000
FRAME_SECONDS = 0.08


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--context", default="4,8,16,30", help="seconds")
    parser.add_argument("--losses", default="34,48", help="seconds")
    parser.add_argument("--after", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--model", default="tiny")
    arguments = parser.parse_args()
    losses = [float(text) for text in arguments.losses.split(",")]
    seconds = max(losses) + arguments.after + 6.0
    streams = list(join(arguments.files, arguments.streams, seconds))
    with serving(arguments.model, len(streams)) as address:
        found = asyncio.run(all_whole(address, streams))
        audio_seconds = sum(map(len, streams)) / RATE
        size = sum(message_size(event) for one in found for event in one.events if isinstance(event, History))
        print(f"{len(streams)} streams of {seconds:g} s; messages with the text: {size / audio_seconds:.0f} bytes/s")
        for context in map(float, arguments.context.split(",")):
            for history in (False, True):
                began = time.perf_counter()
                again = [
                    one
                    for loss in losses
                    for one in asyncio.run(continue_all(address, found, loss, context, history, arguments.after))
                ]
                exact = sum(one.got == one.want for one in again)
                wrong, words = sum(differing(one.got, one.want) for one in again), sum(len(one.want) for one in again)
                print(
                    f"context {context:>2g} s, {'with' if history else 'without'} the text: "
                    f"{exact} of {len(again)} exact, {wrong} of {words} words differ, "
                    f"caught up after {statistics.median(one.seconds for one in again):.1f} s, "
                    f"{statistics.median(one.size for one in again):.0f} bytes in the address "
                    f"({time.perf_counter() - began:.0f} s)",
                    flush=True,
                )


@dataclass
class Whole:
    """A stream without a loss: its audio, its events and the delay of its text, in seconds."""

    audio_S: FloatArray
    events: list[StreamEvent]
    delay: float


@dataclass
class Continued:
    """The words after a loss, continued and without a loss; the seconds to catch up, and the bytes of the text."""

    got: list[str]
    want: list[str]
    seconds: float
    size: int


async def all_whole(address: str, streams: list[FloatArray]) -> list[Whole]:
    return list(await asyncio.gather(*(whole(address, audio_S) for audio_S in streams)))


async def whole(address: str, audio_S: FloatArray) -> Whole:
    async with open_async_stream(address, sample_rate=RATE, resumption=Resumption(first_frame=0)) as stream:
        sending = asyncio.create_task(send(stream, audio_S))
        events = [event async for event in stream]
        await sending
        return Whole(audio_S, events, stream.delay_seconds)


async def continue_all(
    address: str, streams: list[Whole], loss: float, context: float, history: bool, after: float
) -> list[Continued]:
    return list(await asyncio.gather(*(resume(address, one, loss, context, history, after) for one in streams)))


async def resume(address: str, one: Whole, loss: float, context: float, history: bool, after: float) -> Continued:
    """Continue a stream whose connection was lost when the server had processed `loss` seconds."""
    text = received(one.events, loss, context, one.delay)
    resumption = Resumption(first_frame=text.first_frame, pieces=text.history) if history else None
    start, end = text.cut, loss + after + one.delay + 1.0
    began, caught_up, words = time.perf_counter(), 0.0, []
    async with open_async_stream(address, sample_rate=RATE, resumption=resumption) as stream:
        sending = asyncio.create_task(send(stream, one.audio_S[round(start * RATE) : round(end * RATE)]))
        async for event in stream:
            if isinstance(event, Step) and not caught_up and event.index * FRAME_SECONDS + start >= loss:
                caught_up = time.perf_counter() - began
            elif isinstance(event, Word):
                words.append(Word(event.text, event.start + start, event.end + start))
        await sending
    plain = [event for event in one.events if isinstance(event, Word)]
    got, want = (within(side, text.settled, loss + after) for side in (words, plain))
    return Continued(got, want, caught_up, sum(len(piece) + 1 for piece in text.history) if history else 0)


def received(events: list[StreamEvent], loss: float, context: float, delay: float) -> FinalText:
    """What a client knows at a loss."""
    text = FinalText(context)
    for event in events:
        if isinstance(event, Word):
            text.word(event)
        elif isinstance(event, PartialWord):
            text.partial(event)
        elif isinstance(event, History):
            text.keep(event)
        elif isinstance(event, Step):
            if event.index * FRAME_SECONDS >= loss:
                break
            text.settle((event.index - 2) * FRAME_SECONDS - delay)
    return text


def message_size(event: History) -> int:
    return len(f'{{"type":"history","end":{event.end},"text":"{event.text}"}}')


async def send(stream: AsyncStream, audio_S: FloatArray) -> None:
    for piece_S in np.array_split(audio_S, max(1, len(audio_S) // RATE)):
        await stream.send(piece_S)
    await stream.finish()


def join(files: list[Path], streams: int, seconds: float) -> Iterator[FloatArray]:
    """Yield streams of this many seconds from recordings, with half a second between them."""
    pieces: list[FloatArray] = []
    for path in files:
        pieces += [load(path, RATE), np.zeros(RATE // 2, np.float32)]
        if sum(map(len, pieces)) > seconds * RATE:
            yield np.concatenate(pieces)[: round(seconds * RATE)]
            pieces, streams = [], streams - 1
        if not streams:
            return


@contextlib.contextmanager
def serving(model: str, slots: int) -> Iterator[str]:
    command = [sys.executable, "-m", "slipstream", "serve", "--port", "0", "--backend", "onnx", "--model", model]
    command += ["--slots", str(slots), "--queue-seconds", "60", "--log-level", "error"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        output = ""
        while not (found := re.search(r"Serving .* on (\S+)", output.replace("\n", " "))):
            line = process.stderr.readline()
            assert line, output
            output += line
        yield found[1]
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def within(words: list[Word], start: float, stop: float) -> list[str]:
    return [word.text for word in words if start - FRAME_SECONDS / 2 < word.start < stop]


def differing(got: list[str], want: list[str]) -> int:
    """The edit distance of two lists of words."""
    row = list(range(len(want) + 1))
    for i, a in enumerate(got, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(want, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


if __name__ == "__main__":
    main()
