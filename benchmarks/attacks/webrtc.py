"""Attacks on the routes of WebRTC, with aiortc as the client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from benchmarks.attacks import Target, attack

if TYPE_CHECKING:
    from aiortc import RTCDataChannel, RTCPeerConnection

CALLS, WHIP = "/v1/realtime/calls", "/v1/whip"
SDP = "Content-Type: application/sdp"


@attack
def whip_offers(target: Target) -> None:
    """Offers of calls that never connect."""
    asyncio.run(_offers(target, WHIP))


@attack
def calls_offers(target: Target) -> None:
    """The same at OpenAI's route."""
    asyncio.run(_offers(target, CALLS))


@attack
def whip_candidates(target: Target) -> None:
    """Offers that never connect, from 16 clients, each with the most addresses that the server may try."""
    asyncio.run(_offers(target, WHIP, clients=16, candidates=64))


@attack
def whip_packets(target: Target) -> None:
    """Packets of Opus as fast as the client can write them."""
    asyncio.run(_call(target, WHIP, _packets))


@attack
def whip_sources(target: Target) -> None:
    """Packets of RTP that each have another source."""
    asyncio.run(_call(target, WHIP, _sources))


@attack
def calls_messages(target: Target) -> None:
    """Messages of the data channel as fast as the client can write them."""
    asyncio.run(_call(target, CALLS, _messages))


@attack
def calls_endless_message(target: Target) -> None:
    """A message of the data channel without an end, which ignores the window of the receiver."""
    asyncio.run(_call(target, CALLS, _endless_message))


@attack
def calls_channels(target: Target) -> None:
    """Thousands of data channels."""
    asyncio.run(_call(target, CALLS, _channels))


# -------------------------------------------------------------------------------------------------------------- details


def _peer() -> tuple[RTCPeerConnection, RTCDataChannel]:
    from aiortc import RTCConfiguration, RTCPeerConnection

    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peer.addTransceiver("audio", "sendonly")
    return peer, peer.createDataChannel("oai-events")


async def _offers(target: Target, path: str, clients: int = 1, candidates: int = 0) -> None:
    peer, _ = _peer()
    await peer.setLocalDescription(await peer.createOffer())
    lines = peer.localDescription.sdp.split("\r\n")
    await peer.close()
    if candidates:
        lines = [line for line in lines if not line.startswith("a=candidate:")]
        first_media = next(number for number, line in enumerate(lines) if line.startswith("m=")) + 1
        lines[first_media:first_media] = [
            f"a=candidate:{number} 1 udp {1000 + number} 127.0.0.1 {40_000 + number} typ host"
            for number in range(candidates)
        ]
    offer = "\r\n".join(lines).encode()

    async def client() -> None:
        while target.running:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(target.request, "POST", path, SDP, body=offer)

    await asyncio.gather(*(client() for _ in range(clients)))


async def _call(target: Target, path: str, flood: Callable[[Any, Any, Target], Awaitable[None]]) -> None:
    """Call, and flood the server while the call lasts."""
    from aiortc import RTCSessionDescription

    peer, channel = _peer()
    try:
        opened = asyncio.Event()
        channel.on("open", opened.set)
        await peer.setLocalDescription(await peer.createOffer())
        answer = await asyncio.to_thread(target.request, "POST", path, SDP, body=peer.localDescription.sdp.encode())
        await peer.setRemoteDescription(RTCSessionDescription(answer.partition(b"\r\n\r\n")[2].decode(), "answer"))
        await asyncio.wait_for(opened.wait(), 10)
        while target.running and peer.connectionState == "connected":
            await flood(peer, channel, target)
            await asyncio.sleep(0)
    finally:
        await peer.close()


async def _packets(peer: RTCPeerConnection, channel: RTCDataChannel, target: Target, source: int = 1) -> None:
    from aiortc.rtp import RtpPacket

    for number in range(100):
        packet = RtpPacket(payload_type=96, sequence_number=number, timestamp=960 * number, ssrc=source)
        packet.payload = b"\xfc\xff\xfe"
        await peer.getSenders()[0].transport._send_rtp(packet.serialize())


async def _sources(peer: RTCPeerConnection, channel: RTCDataChannel, target: Target) -> None:
    for source in range(1, 30):
        await _packets(peer, channel, target, source)


async def _messages(peer: RTCPeerConnection, channel: RTCDataChannel, target: Target) -> None:
    if channel.bufferedAmount < 1 << 16:
        for _ in range(100):
            channel.send('{"type":"input_audio_buffer.clear"}')


async def _endless_message(peer: RTCPeerConnection, channel: RTCDataChannel, target: Target) -> None:
    from aiortc.rtcsctptransport import DataChunk

    sctp = peer.sctp
    for _ in range(100):
        chunk = DataChunk(flags=2 if not getattr(sctp, "begun", False) else 0)
        sctp.begun = True
        chunk.tsn, chunk.stream_id, chunk.stream_seq, chunk.protocol = sctp._local_tsn, channel.id, 1, 51
        chunk.user_data = bytes(1000)
        sctp._local_tsn = (sctp._local_tsn + 1) % (1 << 32)
        await sctp._send_chunk(chunk)


async def _channels(peer: RTCPeerConnection, channel: RTCDataChannel, target: Target) -> None:
    for number in range(20):
        peer.createDataChannel(str(number))
