"""What one connection may cost the server, and how its pace is kept."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds on a connection. Times in seconds.

    Over `message_bytes`, `text_bytes` (of a text message), `message_fragments` and `idle_seconds` a connection is
    closed. At `session_seconds` its stream is finished, then closed. Over `buffered_seconds` of audio,
    `bytes_per_second`, `messages_per_second` (fragments, pings and pongs count as messages), `restarts_per_second` or
    `pending_markers` the server stops reading from it, so that the client waits: nothing is lost. `droppable_messages`
    and `unsent_messages` bound what a slow reader leaves unread: above the first, `Step` and partial words are left
    out; above the second, it is closed.

    An upload has at most `upload_bytes`, and `upload_seconds` of audio; the gaps between its timestamps, which become
    silence, add up to at most `upload_gap_seconds`. `uploads` are served at once.

    The server has at most `connections`, and `connections_per_address` of them from one IPv4 address or IPv6 /64
    network. A request's head has `header_seconds` and `header_bytes`. Its body has `body_seconds`, and a second more
    for every `body_bytes_per_second`. A step of the model that takes more than `step_seconds` counts as a hang.
    """

    message_bytes: int = 4 << 20
    upload_bytes: int = 512 << 20
    upload_seconds: float = 4 * 3600.0
    upload_gap_seconds: float = 600.0
    uploads: int = 4
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
    header_seconds: float = 10.0
    header_bytes: int = 32 << 10
    body_seconds: float = 20.0
    body_bytes_per_second: float = 1000.0
    step_seconds: float = 2.0


class Pace:
    """A token bucket: how long to wait so that amounts keep to `rate` a second, with `burst` at once.

    `burst`: by default a second's worth, at least 1.
    """

    def __init__(self, rate: float, now: float, burst: float | None = None) -> None:
        self._rate, self._full = rate, max(rate, 1.0) if burst is None else burst
        self._tokens, self._last = self._full, now

    def delay(self, now: float, amount: float = 1.0) -> float:
        """Count an amount at `now` (seconds of a monotonic clock). Returns the seconds to wait before the next."""
        self._tokens = min(self._full, self._tokens + (now - self._last) * self._rate) - amount
        self._last = now
        return max(0.0, -self._tokens / self._rate)
