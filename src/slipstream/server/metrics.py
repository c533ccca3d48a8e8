"""Prometheus metrics. The first four have the names, labels and units of Kyutai's server, for its dashboards."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from slipstream.connections.access import Client
from slipstream.engine.engine import StepReport
from slipstream.engine.live import AnyEngine

_STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.16)
_CONNECTION_STEPS = (2, 25, 125, 250, 500, 750, 1125, 1500, 2250, 3000, 4500, 45_000)
_LAG_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.4, 1, 4, 10, 30)
_FLUSH_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2.5)
_QUEUE_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 100)
_REFUSALS_LOGGED = 10
"""Refusals logged per second; the counter has them all."""

logger = logging.getLogger(__name__)


def choose_format(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """Return what writes metrics in the format that the header `Accept` requests, and its media type."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is not a number
        return choose_encoder("")


class Metrics:
    """The metrics of a server, in their own registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        # Gauges although they count: a Counter would be named asr_connect_total.
        connects = gauge("asr_connect", "Connections so far.", ["handler"])
        self.connects = connects.labels("all")
        open_channels = gauge("asr_open_channels", "Streams that have a slot.", ["handler"])
        self.open_channels = open_channels.labels("all")
        self.step_seconds = histogram(
            "asr_model_step_duration", "One step of the model, in seconds.", buckets=_STEP_SECONDS
        )
        self.connection_steps = histogram(
            "asr_connection_num_steps", "Frames processed in a connection.", buckets=_CONNECTION_STEPS
        )
        self.queued = gauge("slipstream_queued", "Streams and uploads that wait for a slot.")
        self.slots = gauge("slipstream_slots", "Slots of the model.")
        self.slots_used = gauge("slipstream_slots_used", "Slots in use by streams and uploads.")
        self.step_running = gauge("slipstream_step_running_seconds", "How long the step in progress has taken so far.")
        self.connections = gauge("slipstream_connections", "Open TCP connections.")
        self.lag_seconds = histogram(
            "slipstream_lag_seconds", "How long the oldest frame had waited when its step began.", buckets=_LAG_SECONDS
        )
        self.held = gauge("slipstream_held", "Streams that wait for a client whose connection was lost.")
        self.resumed = counter("slipstream_resumed", "Streams continued on another connection.")
        self.words = counter("slipstream_words", "Words sent.")
        self.flush_seconds = histogram(
            "slipstream_flush_seconds",
            "How long a flush took, from the request to its last word.",
            buckets=_FLUSH_SECONDS,
        )
        self.queue_seconds = histogram(
            "slipstream_queue_seconds",
            "How long streams and uploads waited for the slot that they got.",
            buckets=_QUEUE_SECONDS,
        )
        self.recoveries = counter("slipstream_recoveries", "Resets of a stream's model.")
        self.dropped = counter("slipstream_dropped_messages", "Messages dropped for slow readers.")
        self.closes = counter("slipstream_closes", "Connections the server closed, by code.", ["code"])
        self.uploads = counter("slipstream_uploads", "Uploads, by HTTP status or `disconnected`.", ["status"])
        self.refusals = counter("slipstream_refusals", "Requests refused, by HTTP status.", ["status"])
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self._log_second = self._logged = 0

    def observe_step(self, report: StepReport) -> None:
        """Record a step; called in the engine's thread."""
        self.step_seconds.observe(report.seconds)
        self.lag_seconds.observe(report.lag_seconds)

    def observe_engines(self, engines: Sequence[AnyEngine]) -> None:
        """Record how the engines of all models are used now."""
        self.queued.set(sum(engine.waiting for engine in engines))
        self.slots.set(sum(engine.slots for engine in engines))
        self.slots_used.set(sum(engine.active for engine in engines))
        self.step_running.set(max(engine.step_seconds for engine in engines))

    def refuse(self, status: int, reason: str, client: Client) -> None:
        """Count a refused request, and log it, unless too many refusals in this second would fill the log."""
        self.refusals.labels(status).inc()
        if (second := int(time.monotonic())) != self._log_second:
            self._log_second, self._logged = second, 0
        self._logged += 1
        if self._logged <= _REFUSALS_LOGGED:
            logger.info("request refused", extra={**client.log_fields, "status": status, "reason": reason})
