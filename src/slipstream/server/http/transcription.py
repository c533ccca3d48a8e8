"""The file of an upload on its way through the decoder and the sessions of its channels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from slipstream.arrays import FloatArray
from slipstream.audio import decode, probe
from slipstream.audio.container import is_longer
from slipstream.connections.limits import Limits
from slipstream.engine.live import AnyEngine, LiveSession
from slipstream.errors import AudioError, ConfigError, Overloaded, SessionClosed, SlipstreamError
from slipstream.events import Event, Final, Ready, Word
from slipstream.server.http.body import Body
from slipstream.server.metrics import Metrics
from slipstream.server.uploads.protocol import Job, UploadError, unavailable
from slipstream.transcript import TranscriptBuilder

if TYPE_CHECKING:
    from slipstream.server.tracing import Trace

UPLOAD_WAIT_SECONDS = 100.0
"""How long an upload waits for a slot, as in the reference."""


@dataclass
class _Channel:
    """One channel of the file."""

    session: LiveSession
    transcript: TranscriptBuilder = field(default_factory=TranscriptBuilder)
    has_slot: bool = False
    asked: float = field(default_factory=time.monotonic)


class Transcription:
    """Decodes a file in a thread of `pool`, and passes its audio to sessions of `engine`.

    Args:
        handle: Takes the events of the sessions, with the number of their channel.
        wake: Called in any thread when `deliver` is due.
        trace: Of the upload, on a server that writes traces.
    """

    def __init__(
        self,
        job: Job,
        body: Body,
        engine: AnyEngine,
        *,
        pool: Executor,
        limits: Limits,
        metrics: Metrics,
        handle: Callable[[Event, int], None],
        wake: Callable[[], None],
        trace: Trace | None = None,
    ) -> None:
        self._trace = trace
        self._job, self._body, self._engine, self._pool = job, body, engine, pool
        self._limits, self._metrics, self._handle, self._wake = limits, metrics, handle, wake
        self._sample_rate = engine.format.sample_rate
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._work: asyncio.Future[Any] | None = None  # what runs in the pool
        self._channels: list[_Channel] = []
        self._samples = 0
        self.warnings: list[str] = []
        """What the decoder found wrong with the file."""
        self.whole = False
        """Whether all audio is sent to the sessions."""

    @property
    def seconds(self) -> float:
        """Seconds of audio decoded so far."""
        return self._samples / self._sample_rate

    @property
    def frames(self) -> int:
        """Frames transcribed so far, of all channels."""
        rate = self._engine.format.frame_rate
        return sum(round(channel.session.clock * rate) for channel in self._channels)

    @property
    def transcripts(self) -> list[TranscriptBuilder]:
        """The text so far of each channel."""
        return [channel.transcript for channel in self._channels]

    async def run(self) -> None:
        """Transcribe to the end of the file, or until it is stopped. Raises `UploadError`."""
        try:
            opening = self._loop.run_in_executor(self._pool, self._open)
            await self._wait(opening)
            if self._done.done():  # it has failed: no session is open yet
                self._done.result()
            first_CS, pieces = opening.result()
            if len(first_CS) > self._engine.slots:
                have = f"the upload has {len(first_CS)} channels"
                raise UploadError(422, f"{have}, but the server transcribes at most {self._engine.slots} at a time")
            self._ask_for_slots(len(first_CS))
            sending = self._loop.run_in_executor(self._pool, self._feed, first_CS, pieces)
            await self._wait(sending)
            if sending.done():
                sending.result()
            await self._done
        except UploadError:
            raise
        except AudioError as error:
            raise UploadError(422, str(error)) from error
        except Overloaded as error:
            raise unavailable(str(error)) from error
        except SlipstreamError as error:
            raise UploadError(500, "the server failed to transcribe the upload") from error

    def deliver(self) -> None:
        """Take what the sessions have transcribed."""
        try:
            for number, channel in enumerate(self._channels):
                for event in channel.session.take() if not self._done.done() else ():
                    self._add(event, number)
        except SlipstreamError as error:
            self._done.set_exception(error)

    def stop(self, error: UploadError) -> None:
        """End with the text so far; with `error` if a session has no slot yet, or has only just got it."""
        if not self._channels or not all(channel.has_slot for channel in self._channels):
            self.fail(error)
            return
        for channel in self._channels:
            with suppress(SlipstreamError):  # it has failed: `_done` has its error
                channel.session.finish()

    def fail(self, error: UploadError) -> None:
        """End with an error, and free the slots immediately."""
        for channel in self._channels:
            channel.session.cancel()
        if not self._done.done():
            self._done.set_exception(error)

    async def free(self) -> None:
        """Free the slots immediately, then wait for the pool's thread: it may still read the file."""
        self.fail(UploadError(500, "the upload is over"))
        for channel in self._channels:
            if channel.has_slot:
                self._metrics.open_channels.dec()
        if self._work is not None:
            await asyncio.wait({self._work})
        for future in (self._work, self._done):
            if future is not None and future.done():
                future.exception()  # retrieved: otherwise asyncio logs it

    def _add(self, event: Event, number: int) -> None:
        channel = self._channels[number]
        channel.transcript.add(event)
        if isinstance(event, Word):
            self._metrics.words.inc()
        elif isinstance(event, Ready):
            channel.has_slot = True
            self._metrics.open_channels.inc()
            exemplar = self._trace.exemplar if self._trace is not None else None
            self._metrics.queue_seconds.observe(time.monotonic() - channel.asked, exemplar)
        self._handle(event, number)
        if isinstance(event, Final) and all(each.transcript.final for each in self._channels):
            self._done.set_result(None)

    def _ask_for_slots(self, channels: int) -> None:
        """Open the session of each channel. Raises `UploadError` for options that the model does not have."""
        most = self._engine.width_for(channels)
        hints = self._job.options.hints.with_at_most(min(self._limits.alternatives, most))
        if channels > 1 and hints.width > most:  # all channels need their slots together
            reason = f"a beam of {hints.width} for each of {channels} channels: expected at most {most}"
            raise UploadError(400, reason)
        options = replace(self._job.options, hints=hints)
        for number in range(channels):
            if self._trace is not None:
                self._trace.waiting(number, self._sample_rate)
            try:
                session = self._engine.open(options, wait=UPLOAD_WAIT_SECONDS, wake=self._wake)
            except ConfigError as error:
                raise UploadError(400, str(error)) from error
            self._channels.append(_Channel(session))

    async def _wait(self, work: asyncio.Future[Any]) -> None:
        """Wait until `work` in the pool or the transcription is done."""
        self._work = work
        await asyncio.wait({work, self._done}, return_when=asyncio.FIRST_COMPLETED)

    # ------------------------------------------------------------------------------------------------- in the pool

    def _open(self) -> tuple[FloatArray, Generator[FloatArray]]:
        """Refuse a file that is too long, and decode the first piece of any other."""
        file, limit, raw = cast(BinaryIO, self._body), self._limits.upload_seconds, self._job.raw
        if not self._job.live and raw is None:  # reading a pipe's header would consume it
            if (probe(file).duration or 0.0) > limit:
                self._body.seek(0)
                if is_longer(file, self._body.name, limit):
                    raise self._too_long()
            self._body.seek(0)
        pieces = decode(
            file,
            raw=raw,
            channels=self._job.channels,
            sample_rate=self._sample_rate,
            max_gap_seconds=self._limits.upload_gap_seconds,
            warn=self.warnings.append,
        )
        return next(pieces), cast("Generator[FloatArray]", pieces)

    def _feed(self, first_CS: FloatArray, pieces: Generator[FloatArray]) -> None:
        """Send the audio to the sessions, waiting while their buffers are full."""
        sessions = [channel.session for channel in self._channels]
        try:
            for piece_CS in chain([first_CS], pieces):
                self._samples += piece_CS.shape[1]
                if self.seconds > self._limits.upload_seconds:
                    raise self._too_long()
                for session, piece_S in zip(sessions, piece_CS, strict=True):
                    session.send(piece_S)
            self.whole = True
            for session in sessions:
                session.finish()
        except SessionClosed:
            pass  # one has ended meanwhile: `_done` has the reason
        except SlipstreamError:
            if not any(session.ended for session in sessions):  # else the session's own error, which `_done` has
                raise
        finally:
            pieces.close()

    def _too_long(self) -> UploadError:
        return UploadError(413, f"the upload is longer than {self._limits.upload_seconds:g} s of audio")
