"""Traces of streams and uploads, collected in memory."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import wave
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tests.fakes import ScriptRunner, speech
from tests.server.harness import get, serving, wait_for
from websockets.asyncio.client import connect

from slipstream.client import open_stream
from slipstream.connections.access import Client
from slipstream.connections.keys import Key
from slipstream.events import EndOfTurn, Event, Final, Flushed, MarkerReached, Ready, Word

pytest.importorskip("opentelemetry.sdk.trace", reason="needs the extra otel")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler

from slipstream.server import tracing
from slipstream.server.tracing import ARRIVALS, MOST_DETAILS, Trace, Tracer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector(BaseHTTPRequestHandler):
    """Takes spans as OTLP over HTTP."""

    bodies: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


class Collected:
    """A tracer, and the spans that it has ended."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        provider = TracerProvider(sampler)
        self._exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = Tracer(provider)

    def begin(self, headers: dict[str, str] | None = None, client: Client | None = None) -> Trace:
        return self.tracer.begin("slipstream.stream", client or Client("7f"), "plain", headers or {})

    def spans(self) -> dict[str, list[ReadableSpan]]:
        found: dict[str, list[ReadableSpan]] = {}
        for span in self._exporter.get_finished_spans():
            found.setdefault(span.name, []).append(span)
        return found


def names(span: ReadableSpan) -> list[str]:
    return [event.name for event in span.events]


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def drive(trace: Trace, *events: Event) -> None:
    for event in events:
        trace.event(event, 0)


def test_a_stream_is_one_span_from_its_first_audio_to_its_last_word() -> None:
    collected = Collected()
    with serving(tracer=collected.tracer) as running:
        with open_stream(running.http) as stream:
            stream.send(speech(seed=1, words=3))
            stream.finish()
            words = sum(isinstance(event, Word) for event in stream)
        wait_for(lambda: "slipstream.stream" in collected.spans())
    spans = collected.spans()
    (root,), (queue,), (flush,) = (spans[f"slipstream.{name}"] for name in ("stream", "queue", "flush"))
    assert names(root) == ["first_audio", "first_frame", "first_word"]
    assert [event.timestamp for event in root.events] == sorted(event.timestamp for event in root.events)
    assert root.context is not None
    for child in (queue, flush):
        assert child.parent is not None
        assert child.parent.span_id == root.context.span_id
    found = attributes(root)
    assert found["slipstream.words"] == words > 0
    assert (found["slipstream.dialect"], found["slipstream.code"]) == ("plain", 1000)
    assert 0 < found["slipstream.word_latency.mean"] <= found["slipstream.word_latency.max"]  # type: ignore[operator]


def test_the_request_may_name_the_parent_span() -> None:
    collected = Collected()

    async def talk(address: str) -> None:
        async with connect(f"ws://{address}/api/asr-streaming", additional_headers={"traceparent": PARENT}):
            pass

    with serving(tracer=collected.tracer) as running:
        asyncio.run(talk(running.address))
        wait_for(lambda: "slipstream.stream" in collected.spans())
    (root,) = collected.spans()["slipstream.stream"]
    assert root.context is not None
    assert root.parent is not None
    assert f"00-{root.context.trace_id:032x}-{root.parent.span_id:016x}-01" == PARENT


@pytest.mark.parametrize("header", ["", "00-0-0-01", "ff" * 200, PARENT.replace("b7ad6b7169203331", "0" * 16)])
def test_a_malformed_parent_begins_a_new_trace(header: str) -> None:
    collected = Collected()
    collected.begin({"traceparent": header}).end(1000, "", failed=False)
    (root,) = collected.spans()["slipstream.stream"]
    assert root.parent is None


def test_an_upload_is_one_span() -> None:
    collected, body = Collected(), io.BytesIO()
    with wave.open(body, "wb") as file:
        file.setparams((1, 2, 24_000, 0, "NONE", ""))
        file.writeframes((speech(seed=1, words=3) * 32767).astype(np.int16).tobytes())
    with serving(tracer=collected.tracer) as running:
        status, text, _ = get(f"{running.http}/api/asr-streaming", body.getvalue(), traceparent=PARENT)
        wait_for(lambda: "slipstream.upload" in collected.spans())
    (root,) = collected.spans()["slipstream.upload"]
    assert root.context is not None
    assert f"{root.context.trace_id:032x}" in PARENT
    assert names(root)[0] == "received"
    assert "first_word" in names(root)
    assert attributes(root)["slipstream.code"] == status == 200
    assert attributes(root)["slipstream.words"] == sum("text" in message for message in json.loads(text))
    assert len(collected.spans()["slipstream.queue"]) == 1


def test_latency_metrics_have_exemplars_in_openmetrics_only() -> None:
    collected = Collected()
    with serving(tracer=collected.tracer) as running:
        with open_stream(running.http) as stream:
            stream.send(speech(seed=1, words=3))
            stream.flush()
            stream.finish()
            assert any(isinstance(event, MarkerReached) for event in stream)
        accept = "application/openmetrics-text; version=1.0.0"
        page = get(f"{running.http}/metrics", accept=accept)[1].decode()
        plain = get(f"{running.http}/metrics")[1].decode()
        wait_for(lambda: "slipstream.stream" in collected.spans())
    (root,) = collected.spans()["slipstream.stream"]
    assert root.context is not None
    exemplars = {
        family.name: [sample.exemplar.labels for sample in family.samples if sample.exemplar]
        for family in text_string_to_metric_families(page)
    }
    for name in ("slipstream_flush_seconds", "slipstream_queue_seconds"):
        assert {labels["trace_id"] for labels in exemplars[name]} == {f"{root.context.trace_id:032x}"}
    assert "trace_id" not in plain


def test_a_trace_that_is_not_sampled_has_no_exemplar() -> None:
    assert Collected().begin().exemplar is not None
    assert Collected(ParentBased(ALWAYS_OFF)).begin().exemplar is None


def test_a_trace_names_the_client_and_not_its_key() -> None:
    collected = Collected()
    client = Client("7f", "192.0.2.7", Key("desk", bytes.fromhex("5ec2e7")))
    collected.begin(client=client).end(1011, "the server failed", failed=True)
    (root,) = collected.spans()["slipstream.stream"]
    assert attributes(root)["slipstream.client"] == "desk"
    assert attributes(root)["client.address"] == "192.0.2.7"
    assert "5ec2e7" not in root.to_json()
    assert not root.status.is_ok


def test_long_streams_have_bounded_traces() -> None:
    collected = Collected()
    trace = collected.begin()
    trace.waiting(0, 100)
    drive(trace, Ready())
    for number in range(ARRIVALS + 50):
        trace.audio(10, 0)
        drive(trace, EndOfTurn(number / 10), Flushed(number / 10, 0.01))
    drive(trace, Word("word", 0.0, 0.1), Word("word", 104.8, 104.9), Final(105.0, 0.1))
    trace.end(1000, "", failed=False)
    (root,) = collected.spans()["slipstream.stream"]
    assert names(root).count("end_of_turn") == MOST_DETAILS
    assert {"first_audio", "first_word"} < set(names(root))
    assert len(collected.spans()["slipstream.flush"]) == MOST_DETAILS
    found = attributes(root)
    assert found["slipstream.turns"] == ARRIVALS + 50
    assert found["slipstream.flushes"] == ARRIVALS + 50
    assert found["slipstream.audio_seconds"] == 105.0


def test_a_stream_that_leaves_the_queue_ends_its_wait() -> None:
    collected = Collected()
    with (
        serving(ScriptRunner(slots=1), tracer=collected.tracer, queue_seconds=5) as running,
        open_stream(running.http),
    ):
        wait_for(lambda: running.engine.active == 1)
        with open_stream(running.http):
            wait_for(lambda: running.engine.waiting == 1)
        wait_for(lambda: "slipstream.stream" in collected.spans())
        assert len(collected.spans()["slipstream.queue"]) == 2


@pytest.mark.parametrize("environment", [{}, {"OTEL_SERVICE_NAME": "captions"}])
def test_the_environment_names_the_service(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracer = Tracer.from_environment()
    resource = tracer.provider.resource.attributes
    assert resource["service.name"] == environment.get("OTEL_SERVICE_NAME", "slipstream")
    tracer.close()


def test_spans_reach_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        tracer = Tracer.from_environment()
        tracer.begin("slipstream.stream", Client("7f"), "plain", {}).end(1000, "", failed=False)
        tracer.close()
        collector.shutdown()
    (body,) = Collector.bodies
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["slipstream.stream"]


def test_a_collector_that_hangs_does_not_delay_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    collected, released = Collected(), threading.Event()
    monkeypatch.setattr(tracing, "SHUTDOWN_SECONDS", 0.01)
    monkeypatch.setattr(collected.tracer.provider, "shutdown", released.wait)
    collected.tracer.close()  # does not wait for the event
    assert not released.is_set()
    released.set()
