"""Limits on what the client of a WebRTC connection may send. aiortc has none, and processes all in the event loop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from slipstream.connections.limits import Pace

if TYPE_CHECKING:
    from aiortc import RTCPeerConnection

BODY_BYTES = 1 << 16
OFFER_CHARACTERS = 1 << 14
"""Of the SDP: aiortc takes 12 ms of the event loop for 60,000. A browser's offer has below 8,000."""
OFFER_LINES = {"a=candidate:": 64, "m=": 4}
"""How many lines of each kind an offer may have: the server contacts each candidate, and takes 2 ms of the event loop
for each medium.
"""
CANDIDATES_PER_SECOND = 100.0
"""Addresses in offers that the server tries to reach. An address that does not answer takes seven packets."""
PACKETS_PER_SECOND = 1000.0
"""Packets of a connection, and messages of its data channel. A track of Opus has 50 packets per second."""
MOST_STREAMS = 16
"""Data channels, and sources of RTP, that a client may open."""
MOST_CHUNKS = 1000
"""Pieces of messages that are not complete: aiortc goes through all of them for each further one."""


def refusal(offer: str) -> str | None:
    """Return why an offer is refused; None if it is not."""
    if len(offer) > OFFER_CHARACTERS:
        return f"an SDP offer has at most {OFFER_CHARACTERS} characters"
    lines = offer.splitlines()
    for start, most in OFFER_LINES.items():
        if sum(line.startswith(start) for line in lines) > most:
            return f"an SDP offer has at most {most} lines with {start}"
    return None


class Candidates:
    """Takes addresses out of offers when there are too many of all clients together.

    A client without them can still connect, because its own packets reach the server; the server's packets only open a
    firewall or NAT of the server.
    """

    def __init__(self) -> None:
        self._pace = Pace(CANDIDATES_PER_SECOND, time.monotonic())

    def limit(self, offer: str) -> str:
        """Return an offer with as many of its addresses as the pace allows now."""
        lines = offer.splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith("a=candidate:") or self._allowed()]
        if len(kept) < len(lines):  # "complete" would mean that the client has no other addresses
            kept = [line for line in kept if not line.startswith("a=end-of-candidates")]
        return "".join(kept)

    def _allowed(self) -> bool:
        now = time.monotonic()
        if self._pace.delay(now, 0.0):
            return False
        self._pace.delay(now)
        return True


class Watch:
    """Notices a client that sends more than a call needs.

    Args:
        peer: The connection.
    """

    def __init__(self, peer: RTCPeerConnection) -> None:
        self._peer = peer
        self._pace, self._packets = Pace(PACKETS_PER_SECOND, time.monotonic()), 0

    def message(self) -> str | None:
        """Count a message of the data channel. Returns why the call ends; None if it does not."""
        return self._check_pace(1)

    def look(self) -> str | None:
        """Look at the connection, several times per second. Returns why the call ends; None if it does not."""
        transports = {transceiver.receiver.transport for transceiver in self._peer.getTransceivers()}
        if (sctp := self._peer.sctp) is not None:
            transports.add(sctp.transport)
            streams = sctp._inbound_streams.values()
            if len(streams) > MOST_STREAMS:
                return f"a call has at most {MOST_STREAMS} data channels"
            # The window is negative if the client ignores how much the server still receives.
            if sctp._advertised_rwnd < 0 or sum(len(stream.reassembly) for stream in streams) > MOST_CHUNKS:
                return "too many pieces of messages that are not complete"
        if any(len(transport._rtp_router.ssrc_table) > MOST_STREAMS for transport in transports):
            return f"a call has at most {MOST_STREAMS} sources of RTP"
        before = self._packets
        self._packets = sum(
            stats.packetsReceived for transport in transports for stats in transport._get_stats().values()
        )
        return self._check_pace(self._packets - before)

    def _check_pace(self, amount: int) -> str | None:
        if self._pace.delay(time.monotonic(), amount) > 1:
            return f"a call has at most {PACKETS_PER_SECOND:g} packets and messages per second"
        return None
