"""Twilio Media Streams: the documented conversation, recorded, against the dialect and against a live server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from benchmarks.dialects import Twilio, mulaw
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dialects.sequences import messages, sequences, state_after
from tests.fakes import ScriptRunner, silence, speech
from tests.server.harness import Running, serving, solo, wait_for
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

from slipstream.arrays import FloatArray
from slipstream.audio import Resampler
from slipstream.connections.keys import KeyRing, new_key
from slipstream.connections.limits import Limits
from slipstream.dialects.models import Models, StreamInfo, StreamRequest
from slipstream.dialects.protocol import Audio, Finish, Forward, Open, ProtocolError, Publish
from slipstream.dialects.twilio import KNOWN, ORDER, TwilioDialect
from slipstream.events import Word

SID = "CA" + "0" * 32
FORMAT = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}


def start(tracks: list[str], **custom: str) -> dict[str, Any]:
    body = {
        "accountSid": "AC0",
        "streamSid": "MZ0",
        "callSid": SID,
        "tracks": tracks,
        "mediaFormat": FORMAT,
        "customParameters": custom,
    }
    return {"event": "start", "sequenceNumber": "1", "start": body, "streamSid": "MZ0"}


def media(track: str, payload: bytes, timestamp: int) -> dict[str, Any]:
    body = {"track": track, "chunk": "1", "timestamp": str(timestamp), "payload": base64.b64encode(payload).decode()}
    return {"event": "media", "sequenceNumber": "3", "media": body, "streamSid": "MZ0"}


CONNECTED = {"event": "connected", "protocol": "Call", "version": "1.0.0"}
STOP = {"event": "stop", "sequenceNumber": "5", "stop": {"accountSid": "AC0", "callSid": SID}, "streamSid": "MZ0"}
SAMPLES = {
    "connected": CONNECTED,
    "start": start(["inbound"]),
    "media": media("inbound", b"\xff" * 160, 5),
    "dtmf": {"event": "dtmf", "dtmf": {"track": "inbound", "digit": "1"}, "streamSid": "MZ0", "sequenceNumber": "5"},
    "mark": {"event": "mark", "sequenceNumber": "4", "streamSid": "MZ0", "mark": {"name": "my label"}},
    "stop": STOP,
}


def recording(tracks: dict[str, FloatArray], **custom: str) -> list[dict[str, Any]]:
    """The messages of a call, as Twilio sends them: 20 ms of each track in turn, all numbers as strings."""
    encoded = {track: mulaw(audio_S) for track, audio_S in tracks.items()}
    call = [CONNECTED, start(list(tracks), **custom)]
    for position in range(0, max(map(len, encoded.values())), 160):
        for track, data in encoded.items():
            if piece := data[position : position + 160]:
                call.append(media(track, piece, position // 8))
    return [*call, STOP]


def at_8k(audio_S: FloatArray) -> FloatArray:
    resampler = Resampler(24_000, 8_000)
    return np.concatenate([resampler.push(audio_S[np.newaxis])[0], resampler.flush()[0]])


def alone(audio_S: FloatArray) -> list[Word]:
    resampler = Resampler(8_000, 24_000)
    coded_S = Twilio.coded(audio_S)
    return solo(np.concatenate([resampler.push(coded_S[np.newaxis])[0], resampler.flush()[0]]))


def dialect() -> TwilioDialect:
    return TwilioDialect(StreamRequest(Models({"tiny": StreamInfo("tiny", 0.5, 0.08)})))


def receive(stream: TwilioDialect, *sent: dict[str, Any]) -> list[Any]:
    return [action for message in sent for action in stream.receive(json.dumps(message))]


@given(st.data())
def test_the_table_of_legal_messages(data: st.DataObject) -> None:
    assert messages(ORDER) == sorted(SAMPLES) == sorted(KNOWN)
    sequence = data.draw(sequences(ORDER))
    stream = dialect()
    for event in sequence:
        receive(stream, SAMPLES[event])
    state = state_after(ORDER, sequence)
    for event in set(SAMPLES) - set(ORDER[state]):
        with pytest.raises(ProtocolError, match=f"'{event}' in the state '{state}'"):
            receive(stream, SAMPLES[event])


def test_each_track_is_a_session() -> None:
    actions = receive(dialect(), *recording({"inbound": silence(2), "outbound": silence(1)}, webhook="https://a/b"))
    assert [type(action) for action in actions[:4]] == [Forward, Publish, Open, Open]
    assert [action.channel for action in actions if isinstance(action, Open)] == [0, 1]
    assert isinstance(actions[-1], Finish)
    samples = [sum(len(a.pcm_S) for a in actions if isinstance(a, Audio) and a.channel == track) for track in (0, 1)]
    assert samples == [3 * 2 * 1920, 3 * 1920]


@pytest.mark.parametrize(("gap_ms", "samples", "later"), [(100, 0, 0.0), (1000, 8000, 0.0), (9000, 16_000, 7.0)])
def test_a_gap_becomes_silence_and_moves_later_times(gap_ms: int, samples: int, later: float) -> None:
    stream = dialect()
    receive(stream, SAMPLES["start"], media("inbound", b"\xff" * 8000, 0))
    actions = receive(stream, media("inbound", b"\xff" * 8000, 1000 + gap_ms), STOP)
    assert sum(len(action.pcm_S) for action in actions if isinstance(action, Audio)) == pytest.approx(
        3 * (8000 + samples), abs=600
    )
    published = list(stream.handle(Word("hello", 3.5, 3.75), 0))
    assert isinstance(published[0], Publish)
    assert json.loads(published[0].message)["start"] == 3.5 + later
    before = list(stream.handle(Word("hello", 0.5, 0.75), 0))
    assert isinstance(before[0], Publish)
    assert json.loads(before[0].message)["start"] == 0.5


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ([{"event": 1}], "event=1: expected the name of an event"),
        ([{"event": "start", "start": {"callSid": "../x"}}], "expected the ID of a call"),
        ([start([])], "expected 1 to 4 different names"),
        ([start(["a", "a"])], "expected 1 to 4 different names"),
        ([start(["inbound"], model="large")], "unknown model 'large'"),
        ([start(["inbound"]), media("outbound", b"", 0)], "track='outbound': expected inbound"),
        (
            [start(["inbound"]), {"event": "media", "media": {"track": "inbound", "payload": "?"}}],
            "payload: not base64",
        ),
        ([{"event": "start", "start": {**start(["a"])["start"], "mediaFormat": {}}}], "expected audio/x-mulaw"),
    ],
)
def test_errors_name_the_problem(sent: list[dict[str, Any]], says: str) -> None:
    stream = dialect()
    receive(stream, *sent[:-1])
    with pytest.raises(ProtocolError, match=says):
        receive(stream, sent[-1])


def test_an_unknown_event_is_ignored() -> None:
    assert receive(dialect(), {"event": "new", "new": {}}) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=9) | st.text(max_size=30) | st.sampled_from(list(SAMPLES)), max_size=6))
def test_any_messages_are_actions_or_a_clean_error(sent: list[bytes | str]) -> None:
    stream = dialect()
    try:
        for message in sent:
            list(stream.receive(json.dumps(SAMPLES[message]) if message in SAMPLES else message))  # type: ignore[index]
    except ProtocolError:
        pass


# --------------------------------------------------------------------------------------------------------------- live


async def play(running: Running, call: list[dict[str, Any]], pause: float = 0.0) -> None:
    async with connect(f"{running.ws}/v1/twilio") as socket:
        for message in call:
            await socket.send(json.dumps(message))
            await asyncio.sleep(pause)
        with pytest.raises(ConnectionClosedOK):  # nothing is sent to Twilio
            await asyncio.wait_for(socket.recv(), 20)


async def follow(socket: ClientConnection) -> list[dict[str, Any]]:
    """All messages of a call up to the end of the connection."""
    received: list[dict[str, Any]] = []
    with contextlib.suppress(ConnectionClosedOK):
        while True:
            received.append(json.loads(await asyncio.wait_for(socket.recv(), 20)))
    return received


def words(received: list[dict[str, Any]], track: str) -> list[str]:
    return [message["text"] for message in received if message["type"] == "word" and message["track"] == track]


@pytest.mark.parametrize("pause", [0.0, 0.002])
def test_the_words_of_both_tracks_come_by_a_second_socket(pause: float) -> None:
    tracks = {"inbound": at_8k(speech(seed=1, words=5)), "outbound": at_8k(speech(seed=2, words=4))}

    async def run(running: Running) -> list[dict[str, Any]]:
        async with connect(f"{running.ws}/v1/calls?id={SID}", max_queue=None) as calls:
            following = asyncio.create_task(follow(calls))
            await play(running, recording(tracks), pause)
            return await following

    with serving(ScriptRunner(slots=2)) as running:
        received = asyncio.run(run(running))
        again = asyncio.run(run(running))  # the same call ID, after the end of the call
    for track, audio_S in tracks.items():
        expected = [word.text for word in alone(audio_S)]
        assert words(received, track) == words(again, track) == expected
        turns = [message["text"] for message in received if message["type"] == "turn" and message["track"] == track]
        assert " ".join(turns).split() == expected
    assert received[0]["type"] == "start"
    assert sorted(message["track"] for message in received if message["type"] == "done") == ["inbound", "outbound"]


def test_a_late_subscriber_gets_the_words_so_far() -> None:
    audio_S = at_8k(np.concatenate([speech(seed=1, words=5), silence(10)]))

    async def run(running: Running) -> list[dict[str, Any]]:
        call = recording({"inbound": audio_S})
        async with connect(f"{running.ws}/v1/twilio") as socket:
            for message in call[:-1]:
                await socket.send(json.dumps(message))
            await asyncio.to_thread(wait_for, lambda: running.service.metrics.words._value.get() >= 3)
            async with connect(f"{running.ws}/v1/calls?id={SID}", max_queue=None) as calls:
                await socket.send(json.dumps(call[-1]))
                return await follow(calls)

    with serving(ScriptRunner(slots=1)) as running:
        received = asyncio.run(run(running))
    assert words(received, "inbound") == [word.text for word in alone(audio_S)]


@contextlib.contextmanager
def webhook(failures: int = 0) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that takes posts: its address, and the messages that it got. The first posts fail."""
    got: list[dict[str, Any]] = []
    left = [failures]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            left[0] -= 1
            if left[0] < 0:
                got.extend(json.loads(body))
            self.send_response(503 if left[0] >= 0 else 204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", got
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("failures", [0, 1])
def test_words_are_posted_to_a_webhook_that_is_allowed(failures: int) -> None:
    audio_S = at_8k(speech(seed=1, words=5))
    with (
        webhook(failures) as (address, got),
        serving(ScriptRunner(slots=1), webhooks=[f"{address}/calls"]) as running,
    ):
        asyncio.run(play(running, recording({"inbound": audio_S}, webhook=f"{address}/calls/one?tag=1")))
        wait_for(lambda: got and got[-1]["type"] == "done")
    assert words(got, "inbound") == [word.text for word in alone(audio_S)]
    assert {message["type"] for message in got} == {"start", "word", "turn", "done"} | (
        {"end_of_turn"} if any(message["type"] == "end_of_turn" for message in got) else set()
    )


def test_another_webhook_is_an_error() -> None:
    async def run(running: Running) -> str:
        async with connect(f"{running.ws}/v1/twilio") as socket:
            await socket.send(json.dumps(start(["inbound"], webhook="http://10.0.0.1/")))
            with pytest.raises(ConnectionClosedError) as closed:
                await asyncio.wait_for(socket.recv(), 20)
            assert closed.value.rcvd is not None
            return closed.value.rcvd.reason

    with serving(ScriptRunner(slots=1), webhooks=["https://example.com/"]) as running:
        assert "webhook 'http://10.0.0.1/' is not allowed" in asyncio.run(run(running))


def test_another_keys_calls_are_not_visible() -> None:
    (mine, _), (other, _) = new_key("mine"), new_key("other")

    async def run(running: Running) -> list[list[dict[str, Any]]]:
        async with contextlib.AsyncExitStack() as stack:
            listening = []
            for key in (mine, other):
                address = f"{running.ws}/v1/calls?id={SID}"
                calls = await stack.enter_async_context(connect(address, additional_headers={"kyutai-api-key": key}))
                listening.append(asyncio.create_task(follow(calls)))
            async with connect(f"{running.ws}/v1/twilio", additional_headers={"kyutai-api-key": mine}) as socket:
                for message in recording({"inbound": at_8k(speech(seed=1, words=2))}):
                    await socket.send(json.dumps(message))
                with contextlib.suppress(ConnectionClosedOK):
                    await asyncio.wait_for(socket.recv(), 20)
            first = await listening[0]
            second = await asyncio.gather(listening[1], return_exceptions=True)
            return [first, [] if isinstance(second[0], BaseException) else second[0]]

    with serving(ScriptRunner(slots=1), keys=KeyRing.of([mine, other]), limits=Limits(idle_seconds=2.0)) as running:
        first, second = asyncio.run(run(running))
    assert words(first, "inbound")
    assert second == []


def test_the_drain_sends_the_last_words_to_subscribers() -> None:
    audio_S = at_8k(np.concatenate([speech(seed=1, words=4), silence(10)]))

    async def run(running: Running) -> list[dict[str, Any]]:
        async with connect(f"{running.ws}/v1/calls?id={SID}", max_queue=None) as calls:
            following = asyncio.create_task(follow(calls))
            async with connect(f"{running.ws}/v1/twilio") as socket:
                for message in recording({"inbound": audio_S})[:-1]:
                    await socket.send(json.dumps(message))
                await asyncio.to_thread(wait_for, lambda: running.service.metrics.words._value.get() >= 1)
                await asyncio.sleep(0.3)
                running.server._stopping = True
                return await following

    with serving(ScriptRunner(slots=1)) as running:
        received = asyncio.run(run(running))
    assert received[-1]["type"] == "done"
    assert words(received, "inbound")
