"""Attacks on the routes of WebRTC, and limits."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, suppress
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest
from benchmarks.attacks import Target
from benchmarks.attacks import webrtc as webrtc_attacks
from tests.fakes import ScriptRunner, silence
from tests.server.harness import Running, get, serving, wait_for
from tests.server.http.test_webrtc import calling

from slipstream.server.http import webrtc, webrtc_limits
from slipstream.server.streams.stream import LiveStream

aiortc = pytest.importorskip("aiortc")
pytestmark = pytest.mark.filterwarnings("ignore")  # of aiortc's dependencies

FLOODS = {
    "whip_packets": "at most 100 packets and messages per second",
    "whip_sources": "at most 16 sources of RTP",
    "calls_messages": "at most 100 packets and messages per second",
    "calls_channels": "at most 16 data channels",
    "calls_endless_message": "too many pieces of messages that are not complete",
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_call_that_sends_too_much_ends(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    most = 100.0 if "packets" in FLOODS[name] else 1e9
    monkeypatch.setattr(webrtc_limits, "PACKETS_PER_SECOND", most)

    peers: list[Any] = []
    make_peer = webrtc_attacks._peer

    def recorded_peer() -> Any:
        made = make_peer()
        peers.append(made[0])
        return made

    monkeypatch.setattr(webrtc_attacks, "_peer", recorded_peer)

    def reasons() -> str:
        return " ".join(str(vars(record).get("reason")) for record in caplog.records)

    with caplog.at_level("INFO", "slipstream"), serving() as running:
        with suppress(ConnectionError):  # of a client that sends more after the end
            getattr(webrtc_attacks, name)(Target(urlsplit(running.http).port or 0, time.monotonic() + 10))
        wait_for(lambda: FLOODS[name] in reasons())
        wait_for(lambda: running.engine.active == 0)
    assert [peer.connectionState for peer in peers] == ["closed"]


@pytest.mark.parametrize(
    ("line", "times", "says"),
    [
        ("a=candidate:", 70, "at most 64 lines"),
        ("m=", 5, "at most 4 lines"),
        ("a=x", 4000, "at most 16384 characters"),
    ],
)
def test_a_long_offer_is_refused(line: str, times: int, says: str) -> None:
    with serving() as running:
        offer = "v=0\r\n" + f"{line}x\r\n" * times
        status, body, _ = get(f"{running.http}/v1/whip", offer.encode(), content_type="application/sdp")
        assert (status, says in body.decode()) == (400, True)


async def offer_that_never_connects() -> bytes:
    async with calling(silence(5), None) as caller:
        await caller.peer.setLocalDescription(await caller.peer.createOffer())
        return str(caller.peer.localDescription.sdp).encode()


def test_an_offer_takes_no_slot() -> None:
    """Only a connection does, so that nobody takes all slots with a few requests."""

    with serving(ScriptRunner(slots=1)) as running:
        sdp = asyncio.run(offer_that_never_connects())
        for _ in range(3):
            assert get(f"{running.http}/v1/whip", sdp, content_type="application/sdp")[0] == 201
        assert running.engine.active == 0


@pytest.mark.parametrize("steps", [0, 4, 8, 16])
def test_a_call_that_ends_while_it_is_answered_closes_its_sockets(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    async def answer(sdp: str) -> None:
        loop = asyncio.get_running_loop()
        create = loop.create_datagram_endpoint

        async def record(*arguments: Any, **options: Any) -> Any:
            transport, protocol = await create(*arguments, **options)
            opened.append(transport)
            return transport, protocol

        monkeypatch.setattr(loop, "create_datagram_endpoint", record)
        peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        call = webrtc.Call(peer, None, None)
        call.stream = Mock(LiveStream)
        answering = asyncio.create_task(call.answer(sdp))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.abort()
        await asyncio.wait([answering])
        await asyncio.sleep(0.1)
        assert [transport for transport in opened if not transport.is_closing()] == []

    asyncio.run(answer(asyncio.run(offer_that_never_connects()).decode()))


def test_a_server_that_stops_closes_the_connections_of_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their clients would not learn of the end, and the sockets would stay open in a process that continues."""
    served: list[Any] = []
    closed: list[Any] = []
    close = aiortc.RTCPeerConnection.close

    async def close_later(peer: Any) -> None:
        await asyncio.sleep(0.2)
        await close(peer)
        closed.append(peer)

    class Peer(aiortc.RTCPeerConnection):  # type: ignore[misc]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            served.append(self)

        close = close_later

    async def call() -> None:
        async with calling(silence(5), "events") as caller:
            monkeypatch.setattr(aiortc, "RTCPeerConnection", Peer)
            with ExitStack() as stack:
                running = stack.enter_context(serving())
                await caller.call(f"{running.http}/v1/whip")
                await caller.until("ready")
                await asyncio.to_thread(stack.close)

    asyncio.run(call())
    assert closed == served


def test_offers_that_never_connect_give_way_to_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody blocks the calls of others with offers: they would for 30 s."""
    monkeypatch.setattr(webrtc, "MOST_CALLS", 2)

    async def call(running: Running) -> None:
        async with calling(silence(5), "events") as first, calling(silence(5), "events") as second:
            await first.call(f"{running.http}/v1/whip")
            await first.until("ready")
            sdp, locations = await offer_that_never_connects(), []
            for _ in range(3):
                status, _, answered = await asyncio.to_thread(
                    get, f"{running.http}/v1/whip", sdp, content_type="application/sdp"
                )
                assert status == 201
                locations.append(answered["location"])
            await second.call(f"{running.http}/v1/whip")
            await second.until("ready")
            for location in locations:
                assert (await asyncio.to_thread(get, running.http + location))[0] == 404
            status, body, _ = await asyncio.to_thread(
                get, f"{running.http}/v1/whip", sdp, content_type="application/sdp"
            )
            assert (status, "2 calls are open" in body.decode()) == (503, True)

    with serving() as running:
        asyncio.run(call(running))


def test_the_server_tries_few_addresses_of_offers_that_never_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise 256 offers of 64 addresses each keep it busy with packets to machines that the client names."""
    monkeypatch.setattr(webrtc_limits, "CANDIDATES_PER_SECOND", 10.0)
    candidates = webrtc_limits.Candidates()
    lines = [f"a=candidate:{number} 1 udp 1 127.0.0.1 {9000 + number} typ host\r\n" for number in range(8)]
    offer = "".join(["v=0\r\n", *lines, "a=end-of-candidates\r\n", "a=mid:0\r\n"])
    assert candidates.limit(offer) == offer
    assert candidates.limit(offer) == "".join(["v=0\r\n", *lines[:3], "a=mid:0\r\n"])
    assert candidates.limit(offer) == "v=0\r\na=mid:0\r\n"


def test_a_call_connects_without_the_addresses_of_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webrtc_limits.Candidates, "_allowed", lambda self: False)

    async def call(running: Running) -> None:
        async with calling(silence(5), "events") as caller:
            await caller.call(f"{running.http}/v1/whip")
            await caller.until("ready")

    with serving() as running:
        asyncio.run(call(running))


def test_offers_take_turns() -> None:
    """An answer takes 5 ms of the event loop, in which no stream is served."""

    async def offer(running: Running) -> None:
        async with calling(silence(5), None) as caller:
            await caller.call(f"{running.http}/v1/whip")

    async def offers(running: Running) -> float:
        await offer(running)  # imports aiortc
        began = time.monotonic()
        await asyncio.gather(*(offer(running) for _ in range(4)))
        return time.monotonic() - began

    with serving() as running:
        assert asyncio.run(offers(running)) >= 3 * webrtc.OFFER_SECONDS
