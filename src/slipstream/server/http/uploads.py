"""Whole files: one POST request per recording, answered with its words."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any, BinaryIO, TypeVar, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from slipstream.arrays import FloatArray
from slipstream.audio import decode, probe
from slipstream.audio.container import is_longer
from slipstream.engine.engine import Engine
from slipstream.engine.live import LiveSession
from slipstream.engine.session import SessionOptions
from slipstream.errors import AudioError, Overloaded, SessionClosed, SlipstreamError
from slipstream.events import Event, Final, Ready, Word
from slipstream.server.access import Client, Refused
from slipstream.server.limits import Limits
from slipstream.server.metrics import Metrics
from slipstream.server.protocol import Close, CloseCode
from slipstream.server.streams.registry import StreamRegistry
from slipstream.transcript import TranscriptBuilder

UPLOAD_WAIT_SECONDS = 100.0
"""How long an upload waits for a slot, as in the reference."""
BUFFERED_SECONDS = 4.0
"""How much decoded audio waits for the model: a graceful shutdown transcribes it before the upload ends."""
RETRY_AFTER_SECONDS = 5
BODY_GRACE_SECONDS, BODY_BYTES_PER_SECOND = 20.0, 16_384
"""A body arrives at this rate at least, once the grace period is over: a slow sender must not hold a place."""
INCOMPLETE_HEADER = "transcript-incomplete"
"""Response header: why a transcript ends before its audio, and after how many seconds."""
_SPOOL_BYTES = 1 << 20
_RETRY = {"retry-after": str(RETRY_AFTER_SECONDS)}

_T = TypeVar("_T")
logger = logging.getLogger(__name__)


class Uploads:
    """ASGI endpoint: takes a file in any format FFmpeg reads, answers with its words in the reference's JSON.

    At most `limits.uploads` requests run in parallel, each in a thread of a separate pool. Others are refused with 503
    and `Retry-After`, before their body is read.
    """

    def __init__(self, engine: Engine, registry: StreamRegistry, limits: Limits, metrics: Metrics) -> None:
        self._engine, self._registry, self._limits, self._metrics = engine, registry, limits, metrics
        self._pool = ThreadPoolExecutor(limits.uploads, thread_name_prefix="slipstream-upload")
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if self._registry.draining:
            raise Refused(503, _STOPPING, _RETRY)
        if self._open >= self._limits.uploads:
            reason = f"{self._open} uploads are in progress, the limit of this server"
            raise Refused(503, reason, _RETRY)
        self._open += 1
        upload = _Upload(request, self._engine, self._registry, self._pool, self._limits, self._metrics)
        try:
            response = await upload.run()
        finally:
            self._open -= 1
        if response is not None:
            await response(scope, receive, send)

    def close(self) -> None:
        """Let the threads of the pool end."""
        self._pool.shutdown(wait=False)


class _Upload:
    """One request, a member of the registry: it ends early when its client leaves, at a time limit, and in a drain."""

    def __init__(
        self,
        request: Request,
        engine: Engine,
        registry: StreamRegistry,
        pool: ThreadPoolExecutor,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._request, self._engine, self._registry, self._pool = request, engine, registry, pool
        self._client: Client = request.scope["sender"]
        self._limits, self._metrics = limits, metrics
        self._sample_rate = engine.format.sample_rate
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[_Ended] = self._loop.create_future()  # early, and why
        self._done: asyncio.Future[Final] = self._loop.create_future()
        self._work: asyncio.Future[Any] | None = None  # what runs in the pool
        self._session: LiveSession | None = None
        self._transcript = TranscriptBuilder()
        self._began = time.monotonic()
        self._bytes = self._samples = 0
        self._whole = False  # all its audio is sent
        self._has_slot = False

    async def run(self) -> Response | None:
        """Serve the request. Returns the response, or None when the client has left."""
        self._metrics.connects.inc()
        self._registry.join(self)
        status, reason = 500, "the server failed"
        response: Response | None = None
        try:
            with _Body(max_size=_SPOOL_BYTES) as body:
                try:
                    await self._save(body)
                    final = await self._transcribe(body)
                finally:
                    body.abandoned = True
                    await self._free()
            status, reason = 200, self._ended.result().reason if self._ended.done() and not self._whole else ""
            # In the pool: the JSON of hours would block the event loop.
            response = await self._loop.run_in_executor(self._pool, self._messages, final, reason)
        except _Ended as ended:
            status, reason = ended.status, ended.reason
            response = _refuse(status, reason) if status else None
        finally:
            self._registry.leave(self)
            self._record(status, reason)
        return response

    # ------------------------------------------------------------------------------------------ called by the registry

    def deliver(self) -> None:
        """Take what the session has transcribed."""
        if self._session is None or self._done.done():
            return
        try:
            for event in self._session.take():
                self._add(event)
        except SlipstreamError as error:
            self._done.set_exception(error)

    def sweep(self, now: float) -> None:
        """Apply the time limit."""
        if now - self._began > self._limits.session_seconds:
            self.end(Close(CloseCode.TIMED_OUT, f"an upload lasts at most {self._limits.session_seconds:g} s"))

    def end(self, close: Close) -> None:
        """Respond with the transcript of the audio decoded so far; refuse an upload that has no slot yet."""
        if self._ended.done():
            return
        self._ended.set_result(_Ended(503, close.reason))
        if self._session is not None and not self._session.queue_position:
            with suppress(SlipstreamError):  # it has failed: `_done` has its error
                self._session.finish()
        else:
            self._give_up(self._ended.result())

    # ---------------------------------------------------------------------------------------------------- in detail

    async def _save(self, body: _Body) -> None:
        """Write the request's body to `body`."""
        limit = self._limits.upload_bytes
        too_large = _Ended(413, f"the upload is larger than {limit} bytes")
        declared = self._request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            raise too_large
        more = True
        while more:
            receiving = self._loop.create_task(_receive(self._request))
            try:
                message = await self._unless_ended(receiving, self._body_seconds())
            finally:
                receiving.cancel()
            if message["type"] == "http.disconnect":
                raise _gone()
            chunk, more = message.get("body", b""), message.get("more_body", False)
            self._bytes += len(chunk)
            if self._bytes > limit:
                raise too_large
            await self._in_pool(partial(body.write, chunk))
        body.seek(0)

    def _body_seconds(self) -> float:
        """How long the rest of the body may take to arrive, by its rate so far."""
        allowed = BODY_GRACE_SECONDS + self._bytes / BODY_BYTES_PER_SECOND
        return max(0.0, self._began + allowed - time.monotonic())

    async def _transcribe(self, body: _Body) -> Final:
        """Decode `body` in the pool and transcribe it, while watching whether the client is still there."""
        watch = self._loop.create_task(self._watch())
        try:
            first, pieces = await self._in_pool(partial(self._open_body, body))
            options = SessionOptions(partials=False, max_buffered_seconds=BUFFERED_SECONDS)
            session = self._session = self._engine.open(
                options, wait=UPLOAD_WAIT_SECONDS, wake=self._registry.waker(self)
            )
            sending = self._work = self._loop.run_in_executor(self._pool, self._send, session, first, pieces)
            either: set[asyncio.Future[Any]] = {sending, self._done}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            return await self._done
        except AudioError as error:
            raise _Ended(422, str(error)) from error
        except Overloaded as error:
            raise _Ended(503, str(error)) from error
        except SlipstreamError as error:
            raise _Ended(500, "the server failed to transcribe the upload") from error
        finally:
            watch.cancel()

    async def _free(self) -> None:
        """Free the slot immediately, then wait for the pool's thread: it may still read the body."""
        if self._session is not None:
            self._session.cancel()
        if self._has_slot:
            self._metrics.open_channels.dec()
        if self._work is not None:
            await asyncio.wait({self._work})
        for future in (self._work, self._done):
            if future is not None and future.done():
                future.exception()  # retrieved: otherwise asyncio logs it

    def _open_body(self, body: _Body) -> tuple[FloatArray, Generator[FloatArray]]:
        """Refuse a file that is too long, and decode the first piece of any other."""
        file, limit = cast(BinaryIO, body), self._limits.upload_seconds
        if (probe(file).duration or 0.0) > limit:
            body.seek(0)
            if is_longer(file, body.name, limit):
                raise self._too_long()
        body.seek(0)
        pieces = cast(
            "Generator[FloatArray]",
            decode(file, sample_rate=self._sample_rate, max_gap_seconds=self._limits.upload_gap_seconds),
        )
        return next(pieces), pieces

    def _send(self, session: LiveSession, first_CS: FloatArray, pieces: Generator[FloatArray]) -> None:
        """Send the audio to the session, waiting while its buffer is full."""
        try:
            for piece_CS in chain([first_CS], pieces):
                self._samples += piece_CS.shape[1]
                if self._samples > self._limits.upload_seconds * self._sample_rate:
                    raise self._too_long()
                session.send(piece_CS[0])
            self._whole = True
            session.finish()
        except SessionClosed:
            pass  # it has ended meanwhile: `_done` has the reason
        except SlipstreamError:
            if not session.ended:  # else the session's own error, which `_done` has
                raise
        finally:
            pieces.close()

    async def _watch(self) -> None:
        """End the upload when the client disconnects."""
        while (await _receive(self._request))["type"] != "http.disconnect":
            pass
        gone = _gone()
        if not self._ended.done():
            self._ended.set_result(gone)
        self._give_up(gone)

    def _give_up(self, error: _Ended) -> None:
        """Free the slot immediately."""
        if self._session is not None:
            self._session.cancel()
            if not self._done.done():
                self._done.set_exception(error)

    def _add(self, event: Event) -> None:
        self._transcript.add(event)
        if isinstance(event, Word):
            self._metrics.words.inc()
        elif isinstance(event, Ready):
            self._has_slot = True
            self._metrics.open_channels.inc()
        elif isinstance(event, Final):
            self._done.set_result(event)

    async def _in_pool(self, function: Callable[[], _T]) -> _T:
        work = self._work = self._loop.run_in_executor(self._pool, function)
        return await self._unless_ended(work)

    async def _unless_ended(self, work: asyncio.Future[_T], timeout: float | None = None) -> _T:
        """Wait for `work`. Raises `_Ended` when the upload ends first."""
        either: set[asyncio.Future[Any]] = {work, self._ended}
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if self._ended.done():
            raise self._ended.result()
        if not work.done():
            rate = BODY_BYTES_PER_SECOND
            raise _Ended(408, f"the body arrived too slowly: at least {rate} bytes a second are expected")
        return work.result()

    def _too_long(self) -> _Ended:
        return _Ended(413, f"the upload is longer than {self._limits.upload_seconds:g} s of audio")

    def _messages(self, final: Final, incomplete: str) -> Response:
        messages: list[dict[str, Any]] = []
        for word in self._transcript.words:
            messages.append({"type": "Word", "text": word.text, "start_time": word.start})
            messages.append({"type": "EndWord", "stop_time": word.end})
        headers = {INCOMPLETE_HEADER: f"{incomplete}; {final.duration:.2f} s are transcribed"} if incomplete else None
        return JSONResponse(messages, headers=headers)

    def _record(self, status: int, reason: str) -> None:
        self._metrics.uploads.labels(status or "disconnected").inc()
        frames = round(self._session.clock * self._engine.format.frame_rate) if self._session else 0
        if self._session is not None:
            self._metrics.connection_steps.observe(frames)
        logger.info(
            "upload closed",
            extra={
                **self._client.log_fields,
                "status": status,
                "reason": reason,
                "seconds": round(time.monotonic() - self._began, 3),
                "bytes": self._bytes,
                "audio_seconds": round(self._samples / self._sample_rate, 3),
                "frames": frames,
                "words": len(self._transcript.words),
            },
        )


class _Ended(Exception):
    """An upload ends without a complete transcript. `status`: of the response; 0 if the client has left."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def _gone() -> _Ended:
    return _Ended(0, "the client disconnected")


_STOPPING = "the server is about to stop"


class _Body(tempfile.SpooledTemporaryFile[bytes]):
    """A request body for the decoder, which names it in its errors. `abandoned`: reading it fails from then on."""

    abandoned = False

    @property
    def name(self) -> str:
        return "the upload"

    def seekable(self) -> bool:
        """Return True: before Python 3.11 the base class has no `seekable`."""
        return True

    def read(self, *args: int) -> bytes:
        """Read as a file does."""
        if self.abandoned:
            raise _gone()
        return super().read(*args)


async def _receive(request: Request) -> Any:
    return await request.receive()


def _refuse(status: int, reason: str) -> Response:
    return PlainTextResponse(reason, status, _RETRY if status == 503 else None)
