"""WebRTC calls, with aiortc as the client, on loopback."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from tests.fakes import ScriptRunner, silence, sound_of, speech
from tests.server.harness import Running, get, serving, solo, wait_for

from slipstream.arrays import FloatArray
from slipstream.audio import Resampler
from slipstream.connections.keys import KeyRing
from slipstream.engine.options import SessionOptions
from slipstream.hints import Keyword

aiortc = pytest.importorskip("aiortc")
av = pytest.importorskip("av")
opus = pytest.importorskip("aiortc.codecs.opus")
jitterbuffer = pytest.importorskip("aiortc.jitterbuffer")
pytestmark = pytest.mark.filterwarnings("ignore")  # of aiortc's dependencies

NESTED = b"".join(b"--b%d\r\nContent-Type: multipart/x; boundary=b%d\r\n\r\n" % (n, n + 1) for n in range(1100))
SAMPLES = 960  # 20 ms at 48 kHz
COMPLETED = "conversation.item.input_audio_transcription.completed"


class Track(aiortc.MediaStreamTrack):  # type: ignore[misc]
    """Sends a recording at `pace` times real time, then silence: in frames of 20 ms or, by a seed, random ones."""

    kind = "audio"

    def __init__(self, pcm_S: FloatArray, pace: float = 1.0, seed: int | None = None) -> None:
        super().__init__()
        self._pcm_S = Resampler(24_000, 48_000).push(pcm_S[np.newaxis])[0]
        self._position = 0
        self._pace, self._random = pace, None if seed is None else np.random.default_rng(seed)

    @property
    def over(self) -> bool:
        """Whether the recording has been sent."""
        return self._position > len(self._pcm_S)

    async def recv(self) -> Any:
        samples = SAMPLES if self._random is None else int(self._random.integers(120, SAMPLES + 1))
        await asyncio.sleep(samples / 48_000 / self._pace)
        piece_S = np.zeros(samples, np.int16)
        known_S = self._pcm_S[self._position : self._position + samples]
        piece_S[: len(known_S)] = known_S * 32767
        frame = av.AudioFrame.from_ndarray(piece_S[np.newaxis], "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, self._position, Fraction(1, 48_000)
        self._position += samples
        return frame


class Caller:
    """A client: its connection, the messages of its data channel, and the address of the call."""

    def __init__(self, track: Track, label: str | None) -> None:
        self.peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self.track = track
        self.peer.addTrack(track)
        self.received: list[dict[str, Any]] = []
        self.location = ""
        self.channel = self.peer.createDataChannel(label) if label else None
        if self.channel is not None:
            self.channel.on("message", lambda message: self.received.append(json.loads(message)))

    async def call(self, address: str, **headers: str) -> None:
        await self.peer.setLocalDescription(await self.peer.createOffer())
        sdp = self.peer.localDescription.sdp.encode()
        headers = {"content_type": "application/sdp", **headers}
        status, body, answered = await asyncio.to_thread(get, address, sdp, **headers)
        assert status == 201, body
        self.location = answered["location"]
        await self.peer.setRemoteDescription(aiortc.RTCSessionDescription(body.decode(), "answer"))

    async def until(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        async def wait() -> None:
            while sum(message["type"] == kind for message in self.received) < count:
                await asyncio.sleep(0.02)

        await asyncio.wait_for(wait(), 30)
        return self.received


@asynccontextmanager
async def calling(audio: FloatArray | Track, label: str | None) -> AsyncIterator[Caller]:
    caller = Caller(audio if isinstance(audio, Track) else Track(audio), label)
    try:
        yield caller
    finally:
        await caller.peer.close()


def decoded(packets: list[bytes]) -> FloatArray:
    """Decode a track's packets of Opus without a connection."""
    decoder, mono = opus.OpusDecoder(), av.AudioResampler("s16", "mono", 48_000)
    frames = [
        frame
        for number, packet in enumerate(packets)
        for frame in decoder.decode(jitterbuffer.JitterFrame(packet, number * SAMPLES))
    ]
    pcm_S = np.concatenate([part.to_ndarray()[0] for frame in frames for part in mono.resample(frame)])
    return Resampler(48_000, 24_000).push((pcm_S / np.float32(32768)).astype(np.float32)[np.newaxis])[0]


@pytest.mark.parametrize("path", ["/v1/whip", "/v1/realtime/calls"])
def test_words_are_those_of_the_same_packets_decoded_alone(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packets: dict[Any, list[bytes]] = {}  # of each call
    encode = opus.OpusEncoder.encode

    def recorded(self: Any, frame: Any, force_keyframe: bool = False) -> Any:
        payloads, timestamp = encode(self, frame, force_keyframe)
        packets.setdefault(self, []).extend(payloads)
        return payloads, timestamp

    async def talk(running: Running, seed: int) -> list[str]:
        recording_S = np.concatenate([speech(seed, words=4), silence(25)])
        async with calling(Track(recording_S, pace=2.0, seed=seed), "events") as caller:
            await caller.call(running.http + path)
            assert caller.channel is not None
            if path == "/v1/whip":
                await caller.until("ready")
            else:
                await caller.until("session.created")
                session = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
                caller.channel.send(json.dumps({"type": "session.update", "session": session}))
            while not caller.track.over:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)  # the message could overtake packets
            if path == "/v1/whip":
                caller.channel.send('{"type":"close"}')
                return [one["text"] for one in await caller.until("done") if one["type"] == "word"]
            caller.channel.send('{"type":"input_audio_buffer.commit"}')
            return list((await caller.until(COMPLETED))[-1]["transcript"].split())

    async def all_at_once(running: Running) -> list[list[str]]:
        return await asyncio.gather(*(talk(running, seed) for seed in range(3)))

    monkeypatch.setattr(opus.OpusEncoder, "encode", recorded)
    with serving() as running:
        words = asyncio.run(all_at_once(running))
    assert all(words)
    assert sorted(words) == sorted([word.text for word in solo(decoded(sent))] for sent in packets.values())


def test_a_realtime_call() -> None:
    audio_S = np.concatenate([silence(8), sound_of("fox", 15), silence(15), sound_of("dog", 15), silence(15)])

    async def talk(running: Running) -> list[dict[str, Any]]:
        async with calling(audio_S, "oai-events") as caller:
            await caller.call(f"{running.http}/v1/realtime/calls")
            await caller.until("session.created")
            assert caller.channel is not None
            caller.channel.send(json.dumps({"type": "session.update", "session": {"type": "transcription"}}))
            await caller.until("session.updated")
            caller.channel.send(json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA"}))
            assert "from its track" in (await caller.until("error"))[-1]["error"]["message"]
            return list(await caller.until(COMPLETED, 2))

    with serving() as running:
        received = asyncio.run(talk(running))
        wait_for(lambda: running.engine.active == 0)
    kinds = [message["type"] for message in received]
    assert kinds.count("input_audio_buffer.speech_started") >= 2
    assert kinds.index("input_audio_buffer.committed") < kinds.index(COMPLETED)


def test_a_realtime_call_with_its_session_in_the_offer() -> None:
    async def talk(running: Running) -> dict[str, Any]:
        async with calling(silence(5), "oai-events") as caller:
            await caller.peer.setLocalDescription(await caller.peer.createOffer())
            session = json.dumps({"type": "transcription", "audio": {"input": {"turn_detection": None}}})
            parts = {"sdp": caller.peer.localDescription.sdp, "session": session}
            body = "".join(
                f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{part}\r\n'
                for name, part in parts.items()
            )
            kind = {"content_type": "multipart/form-data; boundary=b"}
            sent = await asyncio.to_thread(
                get, f"{running.http}/v1/realtime/calls", f"{body}--b--\r\n".encode(), **kind
            )
            status, answer, headers = sent
            assert status == 201
            await caller.peer.setRemoteDescription(aiortc.RTCSessionDescription(answer.decode(), "answer"))
            updated = (await caller.until("session.updated"))[-1]
            await asyncio.to_thread(get, f"{running.http}{headers['location']}/hangup", b"")
            return updated

    with serving() as running:
        updated = asyncio.run(talk(running))
        assert updated["session"]["audio"]["input"]["turn_detection"] is None
        wait_for(lambda: running.engine.active == 0)


def test_a_page_calls_with_a_client_secret() -> None:
    async def talk(running: Running, secret: str) -> dict[str, Any]:
        async with calling(silence(5), "oai-events") as caller:
            await caller.call(f"{running.http}/v1/realtime/calls", authorization=f"Bearer {secret}")
            created = (await caller.until("session.created"))[0]
            status, _, _ = await asyncio.to_thread(get, f"{running.http}{caller.location}/hangup", b"")
            assert status == 401
            return created

    with serving(keys=KeyRing.of(["secret"])) as running:
        body = json.dumps({"session": {"type": "transcription", "audio": {"input": {"turn_detection": None}}}})
        address = f"{running.http}/v1/realtime/client_secrets"
        secret = json.loads(get(address, body.encode(), authorization="Bearer secret")[1])["value"]
        created = asyncio.run(talk(running, secret))
        assert created["session"]["audio"]["input"]["turn_detection"] is None
        wait_for(lambda: running.engine.active == 0)


def test_whip_with_a_data_channel() -> None:
    audio_S = np.concatenate([silence(8), sound_of("fox", 15), silence(15)])

    async def talk(running: Running) -> list[dict[str, Any]]:
        async with calling(audio_S, "events") as caller:
            await caller.call(f"{running.http}/v1/whip")
            await caller.until("word")
            ending = urllib.request.Request(f"{running.http}{caller.location}", method="DELETE")
            await asyncio.to_thread(lambda: urllib.request.urlopen(ending, timeout=10).close())
            return list(await caller.until("done"))

    with serving() as running:
        received = asyncio.run(talk(running))
    assert received[0]["type"] == "ready"


def test_a_client_that_closes_its_data_channel_ends_without_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def talk(running: Running) -> None:
        async with calling(np.concatenate([silence(8), sound_of("fox", 15), silence(60)]), "events") as caller:
            await caller.call(f"{running.http}/v1/whip")
            await caller.until("word")
            assert caller.channel is not None
            caller.channel.close()
            await asyncio.sleep(0.5)  # more messages come meanwhile

    with serving() as running:
        asyncio.run(talk(running))
        wait_for(lambda: running.engine.active == 0)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_whip_without_a_data_channel_has_server_sent_events() -> None:
    async def talk(running: Running) -> list[str]:
        async with calling(np.concatenate([silence(8), sound_of("fox", 15), silence(60)]), None) as caller:
            await caller.call(f"{running.http}/v1/whip")

            def read() -> list[str]:
                kinds: list[str] = []
                with urllib.request.urlopen(f"{running.http}{caller.location}", timeout=20) as response:
                    assert response.headers["content-type"].startswith("text/event-stream")
                    for line in response:
                        if line.startswith(b"data: "):
                            kinds.append(json.loads(line[6:])["type"])
                            if kinds[-1] == "word":
                                assert get(f"{running.http}{caller.location}")[0] == 409
                                return kinds
                return kinds

            return await asyncio.to_thread(read)

    with serving() as running:
        kinds = asyncio.run(talk(running))
        wait_for(lambda: running.engine.active == 0)
    assert kinds[0] == "ready"


@pytest.mark.parametrize("path", ["/v1/whip", "/v1/realtime/calls"])
@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"v=0", "application/sdp", 400),
        (b"\xff", "application/sdp", 400),
        (b"x" * 70_000, "application/sdp", 413),
        (b"{}", "application/json", 415),
        (b"", "multipart/form-data; boundary=b", 400),
        (
            b'--b\r\nContent-Disposition: form-data; name="session"\r\n\r\n{}\r\n--b--',
            "multipart/form-data; boundary=b",
            400,
        ),
        (
            b"--b\r\nContent-Disposition: form-data; name*=utf-8''sdp; name*0*=x\r\n\r\nv\r\n--b--",
            "multipart/form-data; boundary=b",
            400,
        ),
        (NESTED, "multipart/form-data; boundary=b0", 400),
    ],
)
def test_a_body_that_is_not_an_offer_is_refused(
    path: str, body: bytes, kind: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as running:
        assert get(f"{running.http}{path}", body, content_type=kind)[0] == status
        assert "request failed" not in caplog.text
        assert get(f"{running.http}{path}/nothing")[0] in (404, 405)


def test_whip_takes_the_hints_of_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[SessionOptions] = []
    offer = {"content_type": "application/sdp"}

    async def call(address: str) -> None:
        async with calling(silence(5), None) as caller:
            await caller.call(address)
            await asyncio.to_thread(wait_for, lambda: opened)

    with serving() as running:
        open_session = running.engine.open
        monkeypatch.setattr(
            running.engine, "open", lambda options, **rest: opened.append(options) or open_session(options, **rest)
        )
        address = f"{running.http}/v1/whip?language=fr&keyword="
        asyncio.run(call(f"{address}Poirot:2"))
        assert get(f"{address}Poirot:99", b"v=0", **offer)[:2] == (
            400,
            b"keyword 'Poirot': weight=99 must be above 0 and up to 10",
        )
        status, reason, _ = get(f"{address}Poirot&encoding=mulaw", b"v=0", **offer)
        assert (status, reason[:46]) == (400, b"unknown parameter 'encoding': expected model, ")
    (options,) = opened
    assert (options.hints.phrases, options.hints.languages) == ((Keyword("Poirot", 2.0),), ("fr",))


def test_a_call_needs_a_key() -> None:
    async def talk(running: Running) -> None:
        async with calling(silence(5), "oai-events") as caller:
            await caller.call(f"{running.http}/v1/realtime/calls", authorization="Bearer secret")
            await caller.until("session.created")

    with serving(ScriptRunner(), keys=KeyRing.of(["secret"])) as running:
        assert get(f"{running.http}/v1/realtime/calls", b"v=0", content_type="application/sdp")[0] == 401
        asyncio.run(talk(running))
