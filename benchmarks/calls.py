"""Calls on WebRTC in the tables of `benchmarks.dialect_load`: `python -m benchmarks.calls latency`, and `cost`.

The audio is Opus in packets of 20 ms, sent in real time on loopback by aiortc. Latencies are from the end of the last
packet with speech to the last final word. The message that ends the audio is sent 100 ms after that packet, because it
would overtake packets in the server's jitter buffer. The cost is the server's processor time per 80 ms of audio while
calls are open, and that of plain streams in real time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import time
import urllib.request
from collections.abc import AsyncIterator
from fractions import Fraction
from typing import Any

import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from av import AudioFrame
from benchmarks.dialect_load import WAIT_SECONDS, cost, server, spoken
from benchmarks.dialects import CLIENTS
from benchmarks.load import FRAME_SECONDS, cpu_seconds

from slipstream.arrays import FloatArray

RATE = 48_000
PACKET = RATE // 50
OVERTAKING_SECONDS = 0.1
PATIENCE_SECONDS = 60.0
MANUAL = {"type": "session.update", "session": {"type": "transcription", "audio": {"input": {"turn_detection": None}}}}
CALLS: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any], str, str]] = {
    "WHIP": ("/v1/whip", [], {"type": "close"}, "word", "done"),
    "realtime call": (
        "/v1/realtime/calls",
        [MANUAL],
        {"type": "input_audio_buffer.commit"},
        *["conversation.item.input_audio_transcription.completed"] * 2,
    ),
}
"""Of each kind of call: its address, the first messages, the one that ends the audio, and the types of final words and
of the last message."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("cost", "latency"))
    parser.add_argument("--sessions", type=int, default=20, help="of each kind, to measure the latency")
    parser.add_argument("--together", type=int, default=5, help="at the same time")
    parser.add_argument("--seconds", type=float, default=4.0, help="of speech at most, to measure the latency")
    parser.add_argument("--frames", type=int, default=150, help="of audio, to measure the cost")
    arguments = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    if arguments.what == "cost":
        print_costs(arguments)
        return
    print("| dialect | with flush: median | P95 | P99 | without: median | P95 | P99 |")
    print("|---|---|---|---|---|---|---|")
    with server("latency", "tiny", arguments.together) as (ports, _):
        for kind in CALLS:
            cells = [kind]
            for wait in (0.0, WAIT_SECONDS):
                latencies = asyncio.run(all_latencies(ports[""], kind, wait, arguments))
                cells += [f"{1000 * seconds:.0f}" for seconds in np.percentile(latencies, [50, 95, 99])]
            print(f"| {' | '.join(cells)} |", flush=True)


def print_costs(arguments: argparse.Namespace) -> None:
    """Print the table of costs."""
    plain = argparse.Namespace(sessions=arguments.together, frames=arguments.frames, pace=1.0)
    print("| dialect | µs per frame | more than plain |")
    print("|---|---|---|")
    with server("cost", "cost", arguments.together) as (ports, process):
        first = cost(ports, process, CLIENTS["plain"], plain)
        print(f"| plain | {first:.0f} | |", flush=True)
        for kind in CALLS:
            found = asyncio.run(call_cost(ports[""], process, kind, arguments))
            print(f"| {kind} | {found:.0f} | {found - first:+.0f} |", flush=True)


class Track(MediaStreamTrack):  # type: ignore[misc]
    """Sends audio in real time, then silence."""

    kind = "audio"

    def __init__(self, pcm_S: FloatArray) -> None:
        super().__init__()
        self._pcm_S = np.zeros(-(-len(pcm_S) // PACKET) * PACKET, np.int16)
        self._pcm_S[: len(pcm_S)] = np.clip(pcm_S, -1, 1) * 32767
        self._sent = 0
        self._began = 0.0
        self.ended = asyncio.Event()
        """Set when the audio has been sent."""
        self.end = 0.0
        """When the audio ended, by the clock of `time.perf_counter`."""

    async def recv(self) -> AudioFrame:
        self._began = self._began or time.perf_counter()
        await asyncio.sleep(self._began + (self._sent + PACKET) / RATE - time.perf_counter())  # at the packet's end
        piece_S = self._pcm_S[self._sent : self._sent + PACKET]
        if not len(piece_S):
            self.ended.set()
            piece_S = np.zeros(PACKET, np.int16)
        elif self._sent + PACKET == len(self._pcm_S):
            self.end = self._began + len(self._pcm_S) / RATE
        frame = AudioFrame.from_ndarray(piece_S[np.newaxis], "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._sent, Fraction(1, RATE)
        self._sent += PACKET
        return frame


class Call:
    """One call that is connected, and how its words come."""

    def __init__(self, kind: str, track: Track) -> None:
        self.track = track
        _, self._first, self._last, self._word, self._done = CALLS[kind]
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.peer.addTrack(track)
        self.channel = self.peer.createDataChannel("events")
        self.channel.on("open", self._begin)
        self.channel.on("message", self._read)
        self.last_word = 0.0
        self.done = asyncio.Event()

    def finish(self) -> None:
        """End the audio."""
        self.channel.send(json.dumps(self._last))

    def _begin(self) -> None:
        for message in self._first:
            self.channel.send(json.dumps(message))

    def _read(self, message: str) -> None:
        kind = json.loads(message)["type"]
        assert kind != "error", message
        if kind == self._word:
            self.last_word = time.perf_counter()
        if kind == self._done:
            self.done.set()


@contextlib.asynccontextmanager
async def connected(port: int, kind: str, pcm_S: FloatArray) -> AsyncIterator[Call]:
    """Connect a call that sends this audio at 48 kHz."""
    call = Call(kind, Track(pcm_S))
    try:
        await call.peer.setLocalDescription(await call.peer.createOffer())
        offer = call.peer.localDescription.sdp.encode()
        address = f"http://127.0.0.1:{port}{CALLS[kind][0]}"
        request = urllib.request.Request(address, offer, {"content-type": "application/sdp"})

        def post() -> str:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
                answer: str = response.read().decode()
            return answer

        answer = await asyncio.to_thread(post)
        await call.peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        yield call
    finally:
        await call.peer.close()


async def all_latencies(port: int, kind: str, wait: float, arguments: argparse.Namespace) -> list[float]:
    """Seconds from the end of speech to the last final word, of each call."""
    speech_S = spoken(RATE, arguments.seconds)
    found: list[float] = []

    async def one(number: int) -> None:
        await asyncio.sleep(number * FRAME_SECONDS / arguments.together)
        async with connected(port, kind, speech_S) as call:
            await asyncio.wait_for(call.track.ended.wait(), PATIENCE_SECONDS)
            await asyncio.sleep(max(wait, OVERTAKING_SECONDS) - (time.perf_counter() - call.track.end))
            call.finish()
            await asyncio.wait_for(call.done.wait(), PATIENCE_SECONDS)
            assert call.last_word, f"{kind}: no word came"
            found.append(call.last_word - call.track.end)

    await one(0)  # the first call of a server is slower
    found.clear()
    for first in range(0, arguments.sessions, arguments.together):
        await asyncio.gather(*(one(number) for number in range(min(arguments.together, arguments.sessions - first))))
    return found


async def call_cost(port: int, process: int, kind: str, arguments: argparse.Namespace) -> float:
    """Microseconds of the server's processor time per 80 ms of audio, while `together` calls are open."""
    seconds = arguments.frames * FRAME_SECONDS
    pcm_S = np.full(round(RATE * (seconds + 60)), 0.01, np.float32)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(arguments.together):
            await stack.enter_async_context(connected(port, kind, pcm_S))
        await asyncio.sleep(1.0)
        began, used = time.perf_counter(), cpu_seconds(process)
        await asyncio.sleep(seconds)
        used, passed = cpu_seconds(process) - used, time.perf_counter() - began
    return 1e6 * used * FRAME_SECONDS / (passed * arguments.together)


if __name__ == "__main__":
    main()
