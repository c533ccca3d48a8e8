"""How often a stream that lost its server continues word for word: `python -m benchmarks.resume FILES`.

The files are joined to streams of about a minute. Each stream loses its connection every `--every` seconds, and
continues on a server that holds its slot (`held`), or on a fresh slot after `--context` seconds of audio that was final
before. A resumption is exact if the words up to the next loss are those of the stream without a loss.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio import load
from slipstream.client import ServerError, transcribe
from slipstream.events import Step, Word
from slipstream.resume import ResumableStream

RATE = 24_000
TAIL_SECONDS = 3.0
"""Words that start this long before the loss may come from either connection."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--context", default="held,2,4,8,16", help="'held', and seconds")
    parser.add_argument("--every", type=float, default=11.0)
    parser.add_argument("--minutes", type=int, default=8, help="streams of a minute")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--model", default="tiny")
    arguments = parser.parse_args()
    streams = list(join(arguments.files, arguments.minutes))
    print(f"{len(streams)} streams, {sum(map(len, streams)) / RATE:.0f} s; a loss every {arguments.every:g} s")
    whole: list[list[Word]] = []
    for hold in (True, False):
        contexts = [text for text in arguments.context.split(",") if (text == "held") == hold]
        if not contexts:
            continue
        with serving(arguments.model, arguments.slots, hold) as address:
            if not whole:
                whole = [list(transcribe(address, np.array_split(audio_S, 60)).words) for audio_S in streams]
            for text in contexts:
                report(address, text, streams, whole, arguments.every, arguments.slots)


def report(
    address: str, context: str, streams: list[FloatArray], whole: list[list[Word]], every: float, slots: int
) -> None:
    began = time.perf_counter()
    seconds = 4.0 if context == "held" else float(context)
    found = asyncio.run(continue_all(address, seconds, streams, every, slots))
    exact, words, wrong, joined = 0, 0, 0, 0
    resumptions = 0
    for (continued, losses), expected in zip(found, whole, strict=True):
        joined += [word.text for word in continued] == [word.text for word in expected]
        for start, stop in zip(losses, [*losses[1:], 1e9], strict=True):
            got, want = (within(side, start - TAIL_SECONDS, stop - TAIL_SECONDS) for side in (continued, expected))
            resumptions += 1
            exact += got == want
            words += len(want)
            wrong += differing(got, want)
    print(
        f"context {context:>4}: {exact} of {resumptions} resumptions exact, {wrong} of {words} words differ, "
        f"{joined} of {len(found)} streams exact ({time.perf_counter() - began:.0f} s)",
        flush=True,
    )


async def continue_all(
    address: str, context: float, streams: list[FloatArray], every: float, slots: int
) -> list[tuple[list[Word], list[float]]]:
    slot = asyncio.Semaphore(slots)

    async def one(audio_S: FloatArray) -> tuple[list[Word], list[float]]:
        async with slot:
            return await with_losses(address, context, audio_S, every)

    return list(await asyncio.gather(*map(one, streams)))


async def with_losses(
    address: str, context: float, audio_S: FloatArray, every: float
) -> tuple[list[Word], list[float]]:
    """Transcribe with a loss of the connection every `every` seconds. Returns the words and when it was lost."""
    stream = ResumableStream(address, sample_rate=RATE, context_seconds=context)
    stream.send(audio_S)
    stream.finish()
    words: list[Word] = []
    losses: list[float] = []
    while not stream.done:
        try:
            await stream.connect()
            async for event in stream:
                if isinstance(event, Word):
                    words.append(event)
                elif isinstance(event, Step):
                    now = event.index * 0.08
                    if now > (len(losses) + 1) * every and now < len(audio_S) / RATE - every / 2:
                        losses.append(now)
                        break
        except ServerError:
            await asyncio.sleep(0.1)
    return words, losses


def join(files: list[Path], streams: int) -> Iterator[FloatArray]:
    """Yield streams of about a minute from recordings, with half a second between them."""
    pieces: list[FloatArray] = []
    for path in files:
        pieces += [load(path, RATE), np.zeros(RATE // 2, np.float32)]
        if sum(map(len, pieces)) > 60 * RATE:
            yield np.concatenate(pieces)
            pieces, streams = [], streams - 1
        if not streams:
            return
    if pieces:
        yield np.concatenate(pieces)


@contextlib.contextmanager
def serving(model: str, slots: int, hold: bool) -> Iterator[str]:
    command = [sys.executable, "-m", "slipstream", "serve", "--port", "0", "--backend", "onnx", "--model", model]
    command += ["--slots", str(slots), "--queue-seconds", "60", "--log-level", "error"]
    command += ["--resume-seconds", "30"] if hold else []
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
    return [word.text for word in words if start <= word.start < stop]


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
