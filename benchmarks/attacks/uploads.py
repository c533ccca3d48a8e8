"""Attacks with whole files."""

from __future__ import annotations

import functools
import io
import itertools
import socket
import time
from fractions import Fraction

import av
import numpy as np
from benchmarks.attacks import Target, attack

PATH = "/api/asr-streaming"
RATE = 8_000


@attack
def upload_gaps(target: Target) -> None:
    """Post 37 kB of Matroska whose timestamps add up to 99 h of silence."""
    file = encoded("matroska", "pcm_s16le", seconds=2, gap=3590)
    while target.running:
        target.request("POST", PATH, body=file)


@attack
def upload_too_long(target: Target) -> None:
    """Post five hours of silence in FLAC, minute after minute, so that only decoding shows how many there are."""
    file = encoded("ogg", "flac", seconds=60) * 300
    while target.running:
        target.request("POST", PATH, body=file)


@attack
def upload_silence(target: Target) -> None:
    """Post three hours of silence in Opus, 2.4 MB, which the limit allows, on six connections in parallel."""
    file = encoded("ogg", "libopus", seconds=60) * 180
    connections = [post(target, file) for _ in range(6)]
    time.sleep(max(0.0, target.until - time.monotonic()))
    for connection in connections:
        connection.close()


@attack
def upload_and_leave(target: Target) -> None:
    """Disconnect in every phase: in the body, after it, and while the audio is transcribed, with FIN and with RST."""
    file = encoded("wav", "pcm_s16le", seconds=120)
    for number in itertools.count():
        if not target.running:
            return
        with post(target, file[: len(file) // 2] if number % 3 == 0 else file, len(file)) as connection:
            time.sleep((0, 0.01, 0.2)[number % 3])
            if number % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1" + bytes(7))


@attack
def upload_unfinished(target: Target) -> None:
    """Fill the pool with bodies that arrive a byte a second."""
    connections = [post(target, b"R", 1_000_000) for _ in range(60)]
    while target.running:
        for connection in connections:
            connection.sendall(b"R")
        time.sleep(1)


@attack
def upload_flood(target: Target) -> None:
    """Post as fast as the server answers, which is 503 once its pool is full."""
    file = encoded("wav", "pcm_s16le", seconds=10)
    connections: list[socket.socket] = []
    while target.running:
        connections = [*connections[-30:], post(target, file)]


@attack
def upload_one_packet(target: Target) -> None:
    """Post 16 MB of Matroska with one packet of PCM at 1 kHz, which is 2.2 hours."""
    file = encoded("matroska", "pcm_s16le", seconds=8_000, samples=8_000_000, rate=1_000)
    while target.running:
        target.request("POST", PATH, body=file)


def post(target: Target, body: bytes, announced: int | None = None) -> socket.socket:
    """Send a POST request, and as its body `body` of the `announced` bytes; the answer is not read."""
    length = len(body) if announced is None else announced
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()
    return target.send(head + body)


@functools.cache
def encoded(format: str, codec: str, seconds: float, samples: int = 160, gap: float = 0.0, rate: int = RATE) -> bytes:
    """Silence in packets of `samples`, after each of which the timestamps jump by `gap` seconds."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        for number in range(round(seconds * rate / samples)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = number * (samples + round(gap * rate))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
