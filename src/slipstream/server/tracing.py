"""OpenTelemetry traces: one span per stream or upload, from the request to its last word. Needs the extra `otel`.

Spans contain no audio, no text and no key. Only a server with `--traces` imports this module.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from slipstream import __version__
from slipstream.connections.access import Client
from slipstream.events import EndOfTurn, Event, Final, Flushed, Ready, Recovered, Step, Word

MOST_DETAILS = 50
"""Turns, flushes and recoveries each that the trace of a stream has; its attributes count all. The SDK drops the first
events of a span with more than 128."""
SHUTDOWN_SECONDS = 3.0
"""How long the last spans may take: a collector that does not answer must not delay the end of the process."""
ARRIVALS = 1000
"""Messages of audio whose time is kept until the words in them are complete."""


class Tracer:
    """Begins the trace of each stream and upload.

    Args:
        provider: Where the spans go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("slipstream", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def from_environment(cls) -> Tracer:
        """Send spans as OTLP over HTTP in the background. The variables `OTEL_...` of OpenTelemetry's SDK apply.

        The main ones: `OTEL_EXPORTER_OTLP_ENDPOINT` (default http://localhost:4318), `OTEL_SERVICE_NAME`,
        `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_TRACES_SAMPLER`.
        """
        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "slipstream"}))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # `close` does, within its time
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def begin(self, name: str, client: Client, dialect: str, headers: Mapping[str, str]) -> Trace:
        """Begin the trace of a stream or an upload.

        Args:
            name: Of its span.
            headers: Of the request, names in lower case. `traceparent` (W3C Trace Context) names the parent span.
        """
        attributes = {"slipstream.dialect": dialect, "slipstream.request_id": client.id}
        if client.address:
            attributes["client.address"] = client.address
        if client.key is not None:
            attributes["slipstream.client"] = client.key.name
        span = self._tracer.start_span(
            name, self._propagator.extract(headers), kind=SpanKind.SERVER, attributes=attributes
        )
        return Trace(self._tracer, span)

    def close(self) -> None:
        """Send what is not sent yet, for at most `SHUTDOWN_SECONDS`."""
        closing = threading.Thread(target=self.provider.shutdown, daemon=True)
        closing.start()
        closing.join(SHUTDOWN_SECONDS)


class Trace:
    """The trace of one stream or upload.

    Its span has the events `first_audio`, `first_frame`, `first_word`, `end_of_turn` and `recovered`; its children are
    `slipstream.queue` (the wait for a slot) and `slipstream.flush`. Not thread-safe: call it in the event loop.
    """

    def __init__(self, tracer: trace.Tracer, span: Span) -> None:
        self._tracer, self._span = tracer, span
        self._context = trace.set_span_in_context(span)
        self._queues: dict[int, Span] = {}
        self._rates: dict[int, int] = {}
        self._arrivals: dict[int, deque[tuple[int, float]]] = {}
        self._seen: set[str] = set()
        self._counts = {"words": 0, "turns": 0, "flushes": 0, "recoveries": 0}
        self._latency_sum = self._latency_max = 0.0
        self._latencies = 0

    @property
    def id(self) -> str:
        """The trace's ID, 32 hexadecimal digits."""
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    @property
    def exemplar(self) -> dict[str, str] | None:
        """The labels of an exemplar that leads to this trace; None if it is not sampled."""
        context = self._span.get_span_context()
        if not context.trace_flags.sampled:
            return None
        return {"trace_id": self.id, "span_id": trace.format_span_id(context.span_id)}

    def waiting(self, channel: int, sample_rate: int) -> None:
        """Record that a session requests a slot. `sample_rate`: of its audio, in Hz."""
        self._end_queue(channel)
        self._rates[channel] = sample_rate
        self._arrivals[channel] = deque(maxlen=ARRIVALS)
        self._queues[channel] = self._tracer.start_span("slipstream.queue", self._context)

    def audio(self, samples: int, channel: int) -> None:
        """Record that audio has arrived."""
        self._first("first_audio", {})
        arrivals = self._arrivals[channel]
        arrivals.append(((arrivals[-1][0] if arrivals else 0) + samples, time.monotonic()))

    def event(self, event: Event, channel: int) -> None:
        """Record an event of a session."""
        if isinstance(event, Step):
            self._first("first_frame", {})
        elif isinstance(event, Word):
            self._word(event, channel)
        elif isinstance(event, Ready):
            self._end_queue(channel)
        elif isinstance(event, EndOfTurn):
            if self._count("turns"):
                self._span.add_event("end_of_turn", {"slipstream.audio_seconds": event.time})
        elif isinstance(event, Flushed):
            if self._count("flushes"):
                self._flush(event.seconds, event.time)
        elif isinstance(event, Recovered):
            if self._count("recoveries"):
                self._span.add_event("recovered", {"slipstream.audio_seconds": event.time, "reason": event.reason})
        elif isinstance(event, Final):
            self._span.set_attribute("slipstream.audio_seconds", event.duration)

    def note(self, event: str) -> None:
        """Record an event that is none of a session."""
        self._span.add_event(event)

    def end(self, code: int, reason: str, failed: bool) -> None:
        """End the trace.

        Args:
            code: Close code of the connection, or HTTP status.
            failed: Whether the server failed.
        """
        for channel in list(self._queues):
            self._end_queue(channel)
        self._span.set_attributes({f"slipstream.{name}": count for name, count in self._counts.items()})
        self._span.set_attributes({"slipstream.code": code, "slipstream.reason": reason})
        if self._latencies:
            self._span.set_attribute("slipstream.word_latency.mean", self._latency_sum / self._latencies)
            self._span.set_attribute("slipstream.word_latency.max", self._latency_max)
        if failed:
            self._span.set_status(trace.StatusCode.ERROR, reason)
        self._span.end()

    def _word(self, word: Word, channel: int) -> None:
        """Count a word, with the time since the audio with its end arrived."""
        self._counts["words"] += 1
        arrivals, end = self._arrivals.get(channel, deque()), word.end * self._rates.get(channel, 0)
        while len(arrivals) > 1 and arrivals[0][0] < end:  # the last one has the samples so far
            arrivals.popleft()
        arrived = arrivals[0][1] if arrivals and arrivals[0][0] >= end else None
        attributes = {"slipstream.audio_seconds": word.end}
        if arrived is not None:
            latency = attributes["slipstream.word_latency"] = time.monotonic() - arrived
            self._latencies += 1
            self._latency_sum += latency
            self._latency_max = max(self._latency_max, latency)
        self._first("first_word", attributes)

    def _flush(self, seconds: float, until: float) -> None:
        now = time.time_ns()
        attributes = {"slipstream.audio_seconds": until}
        began = now - int(1e9 * seconds)
        self._tracer.start_span("slipstream.flush", self._context, start_time=began, attributes=attributes).end(now)

    def _first(self, name: str, attributes: dict[str, float]) -> None:
        if name not in self._seen:
            self._seen.add(name)
            self._span.add_event(name, attributes)

    def _count(self, what: str) -> bool:
        """Count an event. Returns whether the trace has room for it."""
        self._counts[what] += 1
        return self._counts[what] <= MOST_DETAILS

    def _end_queue(self, channel: int) -> None:
        if (queue := self._queues.pop(channel, None)) is not None:
            queue.end()
