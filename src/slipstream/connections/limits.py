"""Limits on what a connection may cost the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a server. Times are in seconds.

    The server closes a connection over `message_bytes`, `text_bytes` (of a text message), `message_fragments` or
    `idle_seconds`. At `session_seconds` it finishes the stream, then closes it. Over `buffered_seconds` of audio,
    `bytes_per_second`, `messages_per_second` (including fragments, pings and pongs), `restarts_per_second` or
    `pending_markers` it stops reading, so that the client waits: no audio is lost. For a client that reads too slowly,
    it drops `Step` and partial words over `droppable_messages`, and closes the connection over `unsent_messages`.

    An upload has at most `upload_bytes`, and `upload_seconds` of audio; the gaps between its timestamps, which become
    silence, add up to at most `upload_gap_seconds`. The server processes `uploads` of them in parallel.

    A client may request at most `alternatives` texts of a doubtful word. Its stream takes as many slots, so the default
    is 1: there are no alternatives.

    The server has at most `connections`, and `connections_per_address` of them from one IPv4 address or IPv6 /64
    network. A TLS handshake may take `handshake_seconds`. The head of a request may take `header_seconds` and
    `header_bytes`. Its body may take `body_seconds`, and one more second per `body_bytes_per_second`. A step of the
    model over `step_seconds` counts as a hang.
    """

    message_bytes: int = 4 << 20
    upload_bytes: int = 512 << 20
    upload_seconds: float = 4 * 3600.0
    upload_gap_seconds: float = 600.0
    uploads: int = 4
    alternatives: int = 1
    text_bytes: int = 4096
    message_fragments: int = 1024
    bytes_per_second: float = float(8 << 20)
    messages_per_second: float = 1000.0
    restarts_per_second: float = 1.0
    pending_markers: int = 1000
    buffered_seconds: float = 30.0
    idle_seconds: float = 120.0
    session_seconds: float = 4 * 3600.0
    droppable_messages: int = 100
    unsent_messages: int = 2000
    drain_seconds: float = 30.0
    connections: int = 4096
    connections_per_address: int = 1024
    handshake_seconds: float = 10.0
    header_seconds: float = 10.0
    header_bytes: int = 32 << 10
    body_seconds: float = 20.0
    body_bytes_per_second: float = 1000.0
    step_seconds: float = 2.0


class Pace:
    """A token bucket of `rate` per second.

    Args:
        rate: Amount per second.
        now: Seconds of a monotonic clock.
        burst: Amount allowed without a delay. Default: the amount of a second, at least 1.
    """

    def __init__(self, rate: float, now: float, burst: float | None = None) -> None:
        self._rate, self._full = rate, max(rate, 1.0) if burst is None else burst
        self._tokens, self._last = self._full, now

    def delay(self, now: float, amount: float = 1.0) -> float:
        """Count an amount at `now` (seconds of a monotonic clock). Returns the seconds to wait before the next."""
        self._tokens = min(self._full, self._tokens + (now - self._last) * self._rate) - amount
        self._last = now
        return max(0.0, -self._tokens / self._rate)
