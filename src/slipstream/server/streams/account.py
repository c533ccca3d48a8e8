"""What one live stream has used and written, for the metrics, the log and its trace."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from slipstream.connections.access import Client
from slipstream.dialects.protocol import CloseCode
from slipstream.events import Event, Flushed, Ready, Recovered, Step, Word
from slipstream.server.metrics import Metrics

if TYPE_CHECKING:
    from slipstream.server.tracing import Trace

logger = logging.getLogger("slipstream.server.streams.stream")


class Account:
    """Counts the slots, frames and words of one stream.

    Args:
        client: For the log.
        dialect: Its name, for the log.
        trace: Of the stream, on a server that writes traces.
    """

    def __init__(self, client: Client, dialect: str, metrics: Metrics, trace: Trace | None) -> None:
        self._client, self._dialect, self._metrics, self.trace = client, dialect, metrics, trace
        self._began = time.monotonic()
        self._asked: dict[int, float] = {}  # when each session requested its slot
        self._slots: set[int] = set()
        self._had_slot = False
        self._frames = self._words = 0
        metrics.connects.inc()

    def ask(self, channel: int, sample_rate: int) -> None:
        """Record that a session requests a slot. `sample_rate`: of its audio, in Hz."""
        self._asked[channel] = time.monotonic()
        if self.trace is not None:
            self.trace.waiting(channel, sample_rate)

    def add(self, event: Event, channel: int) -> None:
        """Record an event of a session."""
        if self.trace is not None:
            self.trace.event(event, channel)
        if isinstance(event, Step):
            self._frames = max(self._frames, event.index)
        elif isinstance(event, Word):
            self._words += 1
            self._metrics.words.inc()
        elif isinstance(event, Ready):
            self._take_slot(channel)
        elif isinstance(event, Flushed):
            self._metrics.flush_seconds.observe(event.seconds, self._exemplar)
        elif isinstance(event, Recovered):
            self._metrics.recoveries.inc()

    def free_slot(self, channel: int) -> None:
        """Record that a session has no slot any more."""
        if channel in self._slots:
            self._slots.discard(channel)
            self._metrics.open_channels.dec()

    def close(self, code: int, reason: str, *, ended_by: str, dropped: int) -> None:
        """Record and log the end of the stream.

        Args:
            code: Close code.
            ended_by: `client` or `server`.
            dropped: Messages dropped for a slow reader.
        """
        for channel in list(self._slots):
            self.free_slot(channel)
        if self._had_slot:
            self._metrics.connection_steps.observe(self._frames)
        self._metrics.dropped.inc(dropped)
        fields = {
            **self._client.log_fields,
            "dialect": self._dialect,
            "ended_by": ended_by,
            "code": code,
            "reason": reason,
            "seconds": round(time.monotonic() - self._began, 3),
            "frames": self._frames,
            "words": self._words,
            "dropped": dropped,
        }
        if self.trace is not None:
            self.trace.end(code, reason, failed=code == CloseCode.INTERNAL_ERROR)
            fields["trace_id"] = self.trace.id
        logger.info("stream closed", extra=fields)

    def _take_slot(self, channel: int) -> None:
        if channel not in self._slots:  # `Ready` follows a restart, too
            self._had_slot = True
            self._slots.add(channel)
            self._metrics.open_channels.inc()
            self._metrics.queue_seconds.observe(time.monotonic() - self._asked[channel], self._exemplar)

    @property
    def _exemplar(self) -> dict[str, str] | None:
        return self.trace.exemplar if self.trace is not None else None
