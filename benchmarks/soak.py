"""Whether a server stays flat: `python -m benchmarks.soak churn --minutes 10`, `... uploads --minutes 60`.

`churn` opens connections and ends them in every way: streams that finish, vanish, are reset or break off in a
handshake. `uploads` posts random files: every container and codec below, whole, cut short or damaged, noise, hours of
silence, gaps between timestamps, bodies that stop, clients that leave at a random time. Both start `--rate` clients a
second, at most `--clients` in parallel. Memory (RSS), file descriptors, threads and used slots are sampled
meanwhile. For each, the table has the median of the first and of the last quarter of the run, and the slope of a line
through all samples after the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from benchmarks.load import AUDIO_FRAME, HANDSHAKE

WARM_UP_SHARE = 0.1
CLOSE = b"\x88\x82" + bytes(4) + struct.pack(">H", 1000)
FORMATS = [
    ("wav", "pcm_s16le"),
    ("flac", "flac"),
    ("ogg", "libopus"),
    ("webm", "libopus"),
    ("matroska", "pcm_s16le"),
    ("mp3", "libmp3lame"),
    ("adts", "aac"),
    ("mp4", "aac"),
    ("mpegts", "aac"),
]
Sample = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=["churn", "uploads"])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=4.0, help="clients a second")
    parser.add_argument("--clients", type=int, default=12, help="parallel clients, at most")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--step-ms", type=float, default=1.0)
    parser.add_argument("--model", help="a model instead of the stand-in")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "benchmarks.load", "--serve", str(arguments.slots)]
    command += ["--step-ms", str(arguments.step_ms)] + (["--model", arguments.model] if arguments.model else [])
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        assert server.stdout is not None
        try:
            port = int(server.stdout.readline())
            samples, results = asyncio.run(soak(port, server.pid, arguments))
        finally:
            server.terminate()
        began = time.monotonic()
        code = server.wait(60)
        print(f"SIGTERM: exit code {code} after {time.monotonic() - began:.1f} s")
        log.seek(0)
        lines = Counter(re.sub(r"\d[\d.]*", "N", line) for line in log.read().splitlines())
    print("the server's standard error, numbers replaced by N:")
    print("\n".join(f"{count:8} {line:.160}" for line, count in lines.most_common(40)))
    print(f"clients: {sum(results.values())}; {dict(sorted(results.items()))}")
    print(table(samples))


async def soak(port: int, process: int, arguments: argparse.Namespace) -> tuple[list[Sample], Counter[str]]:
    """Send clients until the time is up, then wait for the last. Returns the samples, and how the clients ended."""
    chance = random.Random(arguments.seed)
    visit = churn if arguments.mode == "churn" else upload
    results: Counter[str] = Counter()
    samples: list[Sample] = []
    visits: set[asyncio.Task[None]] = set()

    async def one() -> None:
        try:
            results[await asyncio.wait_for(visit(port, chance), 60)] += 1
        except OSError as error:
            results[type(error).__name__] += 1
        except asyncio.TimeoutError:
            results["no answer in 60 s"] += 1

    began = next_sample = time.monotonic()
    deadline = began + arguments.minutes * 60
    while time.monotonic() < deadline:
        if len(visits) < arguments.clients:
            task = asyncio.create_task(one())
            visits.add(task)
            task.add_done_callback(visits.discard)
        if time.monotonic() >= next_sample:
            next_sample += arguments.every
            samples.append(await sample(port, process, began))
        await asyncio.sleep(chance.expovariate(arguments.rate))
    if visits:
        await asyncio.wait(visits)
    await asyncio.sleep(2)
    samples.append(await sample(port, process, began))
    return samples, results


async def sample(port: int, process: int, began: float) -> Sample:
    """What the server uses now."""
    (module,) = json.loads((await http(port, b"GET /api/modules_info HTTP/1.1\r\n" + _HOST)).partition(b"\r\n\r\n")[2])
    status = Path(f"/proc/{process}/status").read_text()
    rss = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return {
        "minutes": (time.monotonic() - began) / 60,
        "RSS (MiB)": int(rss.split()[1]) / 1024,
        "file descriptors": len(os.listdir(f"/proc/{process}/fd")),
        "threads": len(os.listdir(f"/proc/{process}/task")),
        "used slots": int(module["used_slots"]),
    }


def table(samples: list[Sample]) -> str:
    """The trend of each measure, as a Markdown table."""
    minutes = [each["minutes"] for each in samples]
    lines = [f"{minutes[-1]:.1f} minutes, {len(samples)} samples", ""]
    lines += ["| | first quarter | last quarter | slope per hour | most | at the end |", "|---|---|---|---|---|---|"]
    settled = [each for each in samples if each["minutes"] >= WARM_UP_SHARE * minutes[-1]]
    for name in samples[0]:
        if name == "minutes":
            continue
        values = [each[name] for each in samples]
        quarter = max(1, len(settled) // 4)
        first, last = (
            statistics.median(each[name] for each in part) for part in (settled[:quarter], settled[-quarter:])
        )
        slope = 60 * float(np.polyfit([each["minutes"] for each in settled], [each[name] for each in settled], 1)[0])
        lines.append(f"| {name} | {first:.1f} | {last:.1f} | {slope:+.2f} | {max(values):.1f} | {values[-1]:.1f} |")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------- the clients

_HOST = b"Host: localhost\r\nConnection: close\r\n\r\n"


async def http(port: int, request: bytes) -> bytes:
    """A whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()


async def churn(port: int, chance: random.Random) -> str:
    """One WebSocket, ended in a random way. Returns which."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ending = chance.choice(["finished", "vanished", "reset", "half a handshake", "silent", "before the answer"])
    try:
        if ending == "half a handshake":
            writer.write(HANDSHAKE[: chance.randrange(1, len(HANDSHAKE))])
            await asyncio.sleep(chance.uniform(0, 2))
            return ending
        if ending == "silent":
            await asyncio.sleep(chance.uniform(0, 2))
            return ending
        writer.write(HANDSHAKE)
        if ending == "before the answer":
            return ending
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(chance.randrange(20)):
            writer.write(AUDIO_FRAME)
            await asyncio.sleep(0.02)
        if ending == "finished":
            writer.write(CLOSE)
            await reader.read()
        return ending
    finally:
        if ending == "reset":
            writer.transport.abort()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def upload(port: int, chance: random.Random) -> str:
    """One upload, of a random file in a random way. Returns what came of it."""
    body = await asyncio.to_thread(chance.choice(FILES), random.Random(chance.random()))
    announced = len(body)
    if stops := chance.random() < 0.1:
        announced += chance.randrange(1, 1_000_000)
    head = f"POST /api/asr-streaming HTTP/1.1\r\nContent-Length: {announced}\r\n".encode()
    leaves_after = chance.expovariate(1.0) if stops or chance.random() < 0.3 else None
    try:
        answer = await asyncio.wait_for(http(port, head + _HOST + body), leaves_after)
    except asyncio.TimeoutError:
        return "the client left"
    return answer[9:12].decode() or "closed without an answer"


def encode(format: str, codec: str, seconds: float, chance: random.Random, gap: float = 0.0) -> bytes:
    """Noise in a container; after each 20 ms its timestamps jump by `gap` seconds."""
    file = io.BytesIO()
    rate = chance.choice([16_000, 48_000])
    noise = np.random.default_rng(chance.randrange(1 << 32))
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, layout=chance.choice(["mono", "stereo"]))
        channels = stream.codec_context.channels
        resampler = av.AudioResampler(stream.format, stream.layout, rate, frame_size=stream.frame_size or 0)
        for position in range(0, round(seconds * rate), rate // 50):
            packed = noise.integers(-8000, 8000, (1, channels * rate // 50)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=stream.layout.name)
            frame.sample_rate, frame.pts = rate, position + round(position / (rate // 50) * gap * rate)
            for converted in [frame] if gap else resampler.resample(frame):
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    return file.getvalue()


def whole(chance: random.Random) -> bytes:
    return encode(*chance.choice(FORMATS), chance.expovariate(1 / 5), chance)


def cut_short(chance: random.Random) -> bytes:
    body = whole(chance)
    return body[: chance.randrange(len(body) + 1)]


def damaged(chance: random.Random) -> bytes:
    body = bytearray(whole(chance))
    for _ in range(chance.randrange(1, 100)):
        if body:
            body[chance.randrange(len(body))] = chance.randrange(256)
    return bytes(body)


def noise(chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(100_000))


def gaps(chance: random.Random) -> bytes:
    return encode("matroska", "pcm_s16le", 2.0, chance, gap=chance.choice([1.0, 60.0, 3590.0]))


def hours_of_silence(chance: random.Random) -> bytes:
    """A WAV header that promises up to two days, and a little of it."""
    size = min(0xFFFFFF00, chance.randrange(1, 48) * 3600 * 16_000)
    head = b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16_000, 2, 16)
    return head + b"data" + struct.pack("<I", size) + bytes(chance.randrange(200_000))


FILES: list[Callable[[random.Random], bytes]] = [whole, whole, whole, cut_short, damaged, noise, gaps, hours_of_silence]

if __name__ == "__main__":
    main()
