"""One upload: receive its body, have it transcribed and respond, in any dialect."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from slipstream.connections.access import Client
from slipstream.connections.limits import Limits
from slipstream.dialects.models import Models, StreamInfo
from slipstream.dialects.protocol import Close, CloseCode
from slipstream.engine.live import AnyEngine
from slipstream.events import Event, Ready
from slipstream.server.http.body import Body
from slipstream.server.http.events import EventSender
from slipstream.server.http.transcription import Transcription
from slipstream.server.metrics import Metrics
from slipstream.server.streams.registry import StreamRegistry
from slipstream.server.uploads.protocol import WARNING_HEADER, UploadDialect, UploadError, unavailable
from slipstream.transcript import Transcript

if TYPE_CHECKING:
    from slipstream.server.tracing import Tracer

BODY_GRACE_SECONDS, BODY_BYTES_PER_SECOND = 20.0, 16_384
"""A body arrives at this rate at least, once the grace period is over: a slow sender must not hold a place. One that is
transcribed while it arrives may be as slow as speech: `Limits.body_bytes_per_second` applies alone."""

logger = logging.getLogger(__name__)

_LONGEST_WARNING = 1000
"""Characters of warnings in a header: clients and proxies limit its length."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all uploads share.

    Args:
        engines: The engine of each model.
        models: What the streams of each model have in common.
        pool: Two threads for each upload: one writes its file, one decodes it.
        tracer: Begins the trace of each upload; None writes no traces.
    """

    engines: Models[AnyEngine]
    models: Models[StreamInfo]
    registry: StreamRegistry
    limits: Limits
    metrics: Metrics
    pool: Executor
    tracer: Tracer | None = None


class Upload:
    """One request, a member of the registry: it ends early when its client leaves, at a time limit, and in a drain.

    Args:
        request: Its body.
        send: ASGI's, for the response.
        dialect: Of this request alone.
    """

    def __init__(self, request: Request, send: Send, dialect: UploadDialect, shared: Shared) -> None:
        self._request, self._send, self._dialect, self._shared = request, send, dialect, shared
        self._client: Client = request.scope["sender"]
        self._limits = shared.limits
        self._loop = asyncio.get_running_loop()
        self._body = Body()
        self._transcription: Transcription | None = None
        self._transcribing: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[UploadError] = self._loop.create_future()  # early, and why
        self._events: EventSender | None = None  # of a live job, once it has a slot
        self._response: Response | None = None
        self._began = time.monotonic()
        self._bytes = 0
        tracer = shared.tracer
        self._trace = tracer.begin("slipstream.upload", self._client, dialect.name, request.headers) if tracer else None

    async def run(self) -> None:
        """Serve the request until its response is known."""
        self._shared.metrics.connects.inc()
        self._shared.registry.join(self)
        status, reason = 500, "the server failed"
        try:
            with self._body:
                try:
                    transcription = await self._transcribe()
                finally:
                    self._body.abandon()
                    await self._free()
            incomplete = self._incomplete(transcription)
            # In the pool: the JSON of hours would block the event loop.
            self._response = await self._loop.run_in_executor(
                self._shared.pool, self._respond, self._transcripts(transcription), transcription.warnings, incomplete
            )
            status, reason = self._response.status_code, incomplete.reason if incomplete else ""
        except UploadError as error:
            self._response = self._dialect.refuse(error)
            status, reason = self._response.status_code, error.reason
        except _Gone:
            status, reason = 0, "the client disconnected"
        finally:
            if self._events and not self._response:
                self._events.cancel()
            self._shared.registry.leave(self)
            self._record(status, reason)

    async def answer(self) -> None:
        """Send the response, unless the client has left."""
        if self._response is not None and self._events is not None:
            self._events.put(bytes(self._response.body))
            await self._events.finish()
        elif self._response is not None:
            await self._response(self._request.scope, self._request.receive, self._send)

    # ------------------------------------------------------------------------------------------ called by the registry

    def deliver(self) -> None:
        """Take what the sessions have transcribed."""
        if self._transcription is not None:
            self._transcription.deliver()

    def sweep(self, now: float) -> None:
        """Apply the time limit."""
        if now - self._began > self._limits.session_seconds:
            self.end(Close(CloseCode.TIMED_OUT, f"an upload lasts at most {self._limits.session_seconds:g} s"))

    def end(self, close: Close) -> None:
        """Respond with the transcript of the audio decoded so far; refuse an upload that has no slot yet."""
        if not self._ended.done():
            self._ended.set_result(unavailable(close.reason))
            if self._transcription is not None:
                self._transcription.stop(self._ended.result())

    # ------------------------------------------------------------------------------------------------------ in detail

    async def _transcribe(self) -> Transcription:
        """Transcribe the body while it arrives, if the job is live, or after its end."""
        await self._receive()
        watch = self._loop.create_task(self._watch())
        try:
            transcription = self._begin()
            assert self._transcribing is not None
            await asyncio.wait({watch, self._transcribing}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                raise _Gone
            self._transcribing.result()
            return transcription
        finally:
            watch.cancel()

    async def _receive(self) -> None:
        """Write the file in the request's body to `_body`, unless the upload ends early with a transcript."""
        limit, dialect = self._limits.upload_bytes, self._dialect
        too_large = UploadError(413, f"the upload is larger than {limit} bytes")
        declared = self._request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            raise too_large
        more = True
        while more:
            message = await self._next_message()
            if message is None:
                return
            if message["type"] == "http.disconnect":
                raise _Gone
            data, more = message.get("body", b""), message.get("more_body", False)
            self._bytes += len(data)
            if self._bytes > limit:
                raise too_large
            await self._loop.run_in_executor(self._shared.pool, self._take, data)
            if dialect.job is not None and dialect.job.live:
                self._begin()
        await self._loop.run_in_executor(self._shared.pool, dialect.end)
        self._body.complete()
        if self._trace is not None:
            self._trace.note("received")

    def _take(self, data: bytes) -> None:
        """Write what of the body belongs to the file; in the pool, since a hostile form is slow to parse."""
        if file := self._dialect.receive(data):
            self._body.write(file)

    async def _next_message(self) -> Any:
        """Wait for the next part of the body. None: the upload ends early, with a transcript or its task's error."""
        receiving = self._loop.create_task(_receive(self._request))
        waiting: set[asyncio.Future[Any]] = {receiving, self._ended}
        seconds = None
        if self._transcribing is None:
            allowed = BODY_GRACE_SECONDS + self._bytes / BODY_BYTES_PER_SECOND
            seconds = max(0.0, self._began + allowed - time.monotonic())
        elif not self._transcribing.done():
            waiting.add(self._transcribing)
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            receiving.cancel()
        if self._transcribing is not None and self._transcribing.done():
            self._transcribing.result()
        if self._ended.done():
            if self._transcribing is None:
                raise self._ended.result()
            return None
        if not receiving.done():
            rate = BODY_BYTES_PER_SECOND
            raise UploadError(408, f"the body arrived too slowly: at least {rate} bytes per second are expected")
        return receiving.result()

    def _begin(self) -> Transcription:
        """Begin to transcribe, unless it has begun."""
        if self._transcription is None:
            job, shared = self._dialect.job, self._shared
            assert job is not None
            self._body.live = job.live
            self._transcription = Transcription(
                job,
                self._body,
                shared.engines[job.model],
                pool=shared.pool,
                limits=self._limits,
                metrics=shared.metrics,
                handle=self._handle,
                wake=shared.registry.waker(self),
                trace=self._trace,
            )
            self._transcribing = self._loop.create_task(self._transcription.run())
            if self._ended.done():
                self._transcription.stop(self._ended.result())
        return self._transcription

    def _handle(self, event: Event, channel: int) -> None:
        """Trace an event. Of a live job, send what the dialect returns for it; the first one begins the response."""
        if self._trace is not None:
            self._trace.event(event, channel)
        if not self._body.live:
            return
        if self._events is None and isinstance(event, Ready):
            self._events = EventSender(self._send)
        for data in self._dialect.handle(event, channel):
            assert self._events is not None
            self._events.put(data)

    async def _watch(self) -> None:
        """Wait until the client disconnects."""
        while (await _receive(self._request))["type"] != "http.disconnect":
            pass

    async def _free(self) -> None:
        if self._transcription is not None and self._transcribing is not None:
            await self._transcription.free()
            await asyncio.wait({self._transcribing})
            self._transcribing.exception()  # retrieved: otherwise asyncio logs it

    def _incomplete(self, transcription: Transcription) -> UploadError | None:
        """Return why the transcript ends before the audio."""
        if not self._ended.done() or transcription.whole:
            return None
        final = transcription.transcripts[0].final
        assert final is not None
        return unavailable(f"{self._ended.result().reason}; {final.duration:.2f} s are transcribed")

    def _transcripts(self, transcription: Transcription) -> list[Transcript]:
        assert self._dialect.job is not None
        info = self._shared.models[self._dialect.job.model]
        return [builder.build(info.model, info.delay_seconds) for builder in transcription.transcripts]

    def _respond(self, transcripts: list[Transcript], warnings: list[str], incomplete: UploadError | None) -> Response:
        response = self._dialect.respond(transcripts, warnings, incomplete)
        if warnings:
            text = "; ".join(warnings)[:_LONGEST_WARNING].encode("ascii", "replace").decode()
            # A track's name may contain line breaks.
            response.headers[WARNING_HEADER] = "".join(each if each.isprintable() else " " for each in text)
        return response

    def _record(self, status: int, reason: str) -> None:
        self._shared.metrics.uploads.labels(status or "disconnected").inc()
        done = self._transcription
        if done is not None and done.transcripts:
            self._shared.metrics.connection_steps.observe(done.frames)
        traced = {}
        if self._trace is not None:
            self._trace.end(status, reason, failed=status >= 500)
            traced = {"trace_id": self._trace.id}
        logger.info(
            "upload closed",
            extra={
                **self._client.log_fields,
                **traced,
                "dialect": self._dialect.name,
                "status": status,
                "reason": reason,
                "seconds": round(time.monotonic() - self._began, 3),
                "bytes": self._bytes,
                "audio_seconds": round(done.seconds, 3) if done else 0.0,
                "frames": done.frames if done else 0,
                "words": sum(len(transcript.words) for transcript in done.transcripts) if done else 0,
                "warnings": done.warnings if done else [],
            },
        )


class _Gone(Exception):
    """The client has disconnected."""


async def _receive(request: Request) -> Any:
    return await request.receive()
