"""The Python interface: recordings to transcripts, streams to events, and sessions that share one engine."""

from __future__ import annotations

import io
import logging
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast, overload

import numpy.typing as npt

from slipstream.arrays import FloatArray
from slipstream.audio import Converter, decode
from slipstream.audio.arrays import SampleConverter, check_range, refuse_single
from slipstream.audio.convert import warn_of_cancellation
from slipstream.audio.samples import check_rate, equal_weights
from slipstream.engine.engine import Engine
from slipstream.engine.live import LiveSession
from slipstream.engine.options import SessionOptions
from slipstream.engine.turns import TurnOptions
from slipstream.engine.waiting import describe_shortage
from slipstream.errors import AudioError, SlipstreamError
from slipstream.events import Event, Recovered
from slipstream.hints import Hints
from slipstream.language.identify import check_languages
from slipstream.model.confidence import Calibration
from slipstream.model.runner import Runner
from slipstream.model.text import Tokenizer
from slipstream.transcript import Transcript, TranscriptBuilder

if TYPE_CHECKING:
    from slipstream.aio import AsyncSession

Source = str | os.PathLike[str] | bytes | BinaryIO | npt.ArrayLike
"""A recording: the path of a file, the bytes of one, a binary file object, or samples as an array `[S]` or `[C, S]`."""

_RECORDING = SessionOptions(partials=False)

logger = logging.getLogger(__name__)


class Transcriber:
    """A model that transcribes as many concurrent streams as its runner has slots.

    Its engine stops when it is closed, at the end of its context, or when it is no longer referenced and its last
    session has ended.

    Args:
        runner: The model.
        tokenizer: Its tokenizer.
        model: Its name, for transcripts.
        silence_prefix_seconds: Silence that the model needs before speech.
        turns: When a turn ends, for sessions that do not set it.
        calibration: What the model's probabilities mean; None leaves them as they are.
        beam: Hypotheses of each recording whose hints do not set them: at most as many as the runner has slots.
        open_recordings: Opens another runner of as many slots for `transcribe` and `transcribe_many`, at their first
            call; None uses `runner` for them too. The attributes of the transcriber are those of `runner`.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        model: str,
        silence_prefix_seconds: float = 0.0,
        turns: TurnOptions | None = None,
        calibration: Calibration | None = None,
        beam: int = 1,
        open_recordings: Callable[[], Runner] | None = None,
    ) -> None:
        self.model = model
        self.turns = turns or TurnOptions()
        self.slots = runner.slots
        self.beam = min(beam, runner.slots)
        self.frame_rate = runner.frame_rate
        self.sample_rate = round(runner.frame_rate * runner.frame_samples)
        self.delay = runner.delay_frames / runner.frame_rate
        self._new_engine = partial(
            Engine,
            tokenizer=tokenizer,
            silence_prefix_seconds=silence_prefix_seconds,
            turns=self.turns,
            calibration=calibration,
        )
        self.engine = self._start(runner)
        self._recordings_lock = threading.Lock()
        self._open_recordings = open_recordings
        self._recordings = self.engine if open_recordings is None else None

    def transcribe(
        self,
        source: Source,
        sample_rate: int | None = None,
        *,
        track: int | None = None,
        options: SessionOptions | None = None,
        hints: Hints | None = None,
    ) -> Transcript:
        """Transcribe a recording. When too few slots are free, it waits for them.

        The search keeps as many hypotheses as the model's configuration sets, unless `Hints.beam` or the `beam` of
        `load` does. 1 gives the words of a live stream, unless the model has a larger lookahead for recordings (`mode`
        of `load`).

        Args:
            source: A file (audio or video, any format that FFmpeg reads) as a path, bytes or a binary file object; or
                samples `[S]` or `[C, S]`: floats within [-1, 1], int8, int16, int32 or uint8. Channels are mixed.
            sample_rate: Sample rate of an array, in Hz. A file has its own.
            track: Audio track of a file, counted from 1; None is the one that players choose.
            options: Options of the session.
            hints: What is known about the speech; they replace those of the options.

        Returns:
            The transcript.

        Raises:
            AudioError: The source cannot be read, or has invalid samples.
            ConfigError: The model does not have the language, the delay or the slots that the hints require.

        Example:
            >>> transcript = transcriber.transcribe("talk.mp3")
            >>> transcript = transcriber.transcribe(samples, sample_rate=16_000)
            >>> transcript = transcriber.transcribe("talk.mp3", hints=Hints(keywords=["Ngaio Marsh"]))
        """
        options = options or _RECORDING
        if hints is not None:
            options = replace(options, hints=hints)
        return self._transcribe(source, sample_rate, options, threading.Event(), track)

    @overload
    def transcribe_many(self, sources: Iterable[Source], sample_rate: int | None = None) -> Iterator[Transcript]: ...
    @overload
    def transcribe_many(
        self, sources: Iterable[Source], sample_rate: int | None = None, *, return_exceptions: Literal[True]
    ) -> Iterator[Transcript | SlipstreamError]: ...
    def transcribe_many(
        self, sources: Iterable[Source], sample_rate: int | None = None, *, return_exceptions: bool = False
    ) -> Iterator[Transcript | SlipstreamError]:
        """Transcribe recordings in parallel, as many as there are slots for. Yields transcripts in their order.

        Args:
            sources: Recordings, as for `transcribe`.
            sample_rate: Sample rate of arrays, in Hz.
            return_exceptions: Yield the error of a recording that fails in place of its transcript, instead of raising.

        Yields:
            One transcript, or error, per recording.

        Raises:
            AudioError: `sources` is a single recording, or a recording cannot be read.

        Example:
            >>> for transcript in transcriber.transcribe_many(Path("recordings").glob("*.mp3")):
            ...     print(transcript.text)
        """
        refuse_single(sources, "transcribe_many takes several recordings", "pass a list of them")
        return self._transcribe_all(sources, sample_rate, return_exceptions)

    def _transcribe_all(
        self, sources: Iterable[Source], sample_rate: int | None, return_exceptions: bool
    ) -> Iterator[Transcript | SlipstreamError]:
        stop = threading.Event()
        with ThreadPoolExecutor(self.slots // self.beam, "slipstream-transcribe") as pool:
            futures = [pool.submit(self._transcribe, source, sample_rate, _RECORDING, stop) for source in sources]
            try:
                for future in futures:
                    error = future.exception()
                    if return_exceptions and isinstance(error, SlipstreamError):
                        yield error
                    else:
                        yield future.result()
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def stream(
        self,
        chunks: Iterable[npt.ArrayLike],
        sample_rate: int,
        *,
        options: SessionOptions | None = None,
        hints: Hints | None = None,
    ) -> Iterator[Event]:
        """Transcribe a live stream, with one hypothesis unless the hints set a beam.

        Yields the available events after each chunk, and the remaining ones after the last, up to `Final`. When all
        slots are in use it waits for one, with a warning in the log: streams that one thread reads in turn need a slot
        each.

        Args:
            chunks: Arrays `[S]` or `[C, S]` of any lengths.
            sample_rate: Of the chunks, in Hz.
            options: Options of the session.
            hints: What is known about the speech; they replace those of the options.

        Yields:
            Words, turns and other events, in order.

        Raises:
            AudioError: The sample rate is invalid, or `chunks` is a single array.
            ConfigError: The model does not have the language, the delay or the slots that the hints require.

        Example:
            >>> for event in transcriber.stream(chunks, 16_000):
            ...     print(event)
        """
        refuse_single(chunks, "stream takes an iterable of arrays", "pass a list with it")
        if hints is not None:
            options = replace(options or SessionOptions(), hints=hints)
        return self._stream(chunks, check_rate(sample_rate), options)

    def _stream(
        self, chunks: Iterable[npt.ArrayLike], sample_rate: int, options: SessionOptions | None
    ) -> Iterator[Event]:
        free, width = self.slots - self.engine.active, options.hints.width if options else 1
        if free < width <= self.slots:
            shortage = describe_shortage(width, [(free, self.slots)])
            logger.warning("%s: this stream waits; load more with slots=", shortage)
        with self.session(options, wait=math.inf) as session:
            for audio_S in self._resampled(chunks, sample_rate):
                session.send(audio_S)
                yield from session.take()
            session.finish()
            yield from session

    def session(self, options: SessionOptions | None = None, *, wait: float = 0.0) -> LiveSession:
        """Open a session: send it mono audio at `self.sample_rate`, and iterate over it for its events.

        Send in one thread and read in another; `LiveSession.feed` sends all chunks and passes errors to the reader. Or
        alternate `send` and `take` in one thread.

        Args:
            options: Options of the session.
            wait: How long it may wait for a slot when all are in use, in seconds.

        Returns:
            The session. Use it as a context manager, which frees its slot.

        Raises:
            Overloaded: Too few slots are free, and it may not wait or too many wait already.
            ConfigError: The model does not have the language, the delay or the slots that the hints require.

        Example:
            >>> with transcriber.session() as session:
            ...     session.send(samples)
            ...     session.finish()
            ...     words = [event.text for event in session if isinstance(event, Word)]
        """
        self._check_languages(options)
        return self.engine.open(options, wait=wait)

    def async_session(self, options: SessionOptions | None = None, *, wait: float = 0.0) -> AsyncSession:
        """Open a session for asyncio. Call it in a running event loop.

        Send in one task and read in another. `feed` sends all chunks; when it fails, the reader gets the error. A
        `TaskGroup` (Python 3.11), or `gather` as in the example, ends both when either fails.

        Args:
            options: Options of the session.
            wait: How long it may wait for a slot when all are in use, in seconds.

        Returns:
            The session. Use it as an asynchronous context manager, which frees its slot.

        Raises:
            Overloaded: Too few slots are free, and it may not wait or too many wait already.
            ConfigError: The model does not have the language, the delay or the slots that the hints require.

        Example:
            >>> async def transcribe(chunks):
            ...     async def read():
            ...         return [event.text async for event in session if isinstance(event, Word)]
            ...
            ...     async with transcriber.async_session() as session:
            ...         _, words = await asyncio.gather(session.feed(chunks), read())
            ...     return words
        """
        from slipstream.aio import AsyncSession

        self._check_languages(options)
        return AsyncSession(lambda wake: self.engine.open(options, wait=wait, wake=wake))

    def close(self) -> None:
        """Stop the engine, and that of recordings; open sessions end with `SessionClosed`."""
        self.engine.close()
        with self._recordings_lock:
            self._open_recordings = None
            if self._recordings is None:
                self._recordings = self.engine
            elif self._recordings is not self.engine:
                self._recordings.close()

    def __enter__(self) -> Transcriber:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _check_languages(self, options: SessionOptions | None) -> None:
        if options is not None and (config := self.engine.format.config) is not None:
            check_languages(options.hints.languages, config.lm.languages)

    def _start(self, runner: Runner) -> Engine:
        """Start an engine that stops when the transcriber is no longer referenced."""
        engine = self._new_engine(runner)
        weakref.finalize(self, engine.retire).atexit = False
        return engine

    def _engine_of_recordings(self) -> Engine:
        """The engine of `transcribe`, which is started by its first call."""
        with self._recordings_lock:
            if self._recordings is None:
                assert self._open_recordings is not None
                self._recordings = self._start(self._open_recordings())
            return self._recordings

    def _transcribe(
        self,
        source: Source,
        sample_rate: int | None,
        options: SessionOptions,
        stop: threading.Event,
        track: int | None = None,
    ) -> Transcript:
        builder = TranscriptBuilder()

        def add(events: Iterable[Event]) -> None:
            for event in events:
                builder.add(event)
                if isinstance(event, Recovered):
                    logger.warning("%s at %.1f s: the model was reset", event.reason, event.time)

        self._check_languages(options)
        options = replace(options, hints=options.hints.with_beam(self.beam))
        engine = self._engine_of_recordings()
        with engine.open(options, wait=math.inf) as session:
            for audio_S in self._read(source, sample_rate, track):
                if stop.is_set():
                    break
                session.send(audio_S)
                add(session.take())
            session.finish()
            add(session)
        return builder.build(self.model, engine.format.delay_frames / self.frame_rate)

    def _read(self, source: Source, sample_rate: int | None, track: int | None) -> Iterator[FloatArray]:
        """Read a source as mono pieces `[S]` at the model's rate."""
        file: Any = io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source
        if isinstance(file, (str, os.PathLike)) or hasattr(file, "read"):
            if sample_rate is not None:
                name = file if isinstance(file, (str, os.PathLike)) else "the file"
                raise AudioError(f"{name}: a file has its own sample rate: pass sample_rate for arrays only")
            return (audio_CS[0] for audio_CS in decode(cast(BinaryIO, file), track=track, sample_rate=self.sample_rate))
        if track is not None:
            raise AudioError("an array has no tracks: omit track")
        if sample_rate is None:
            raise AudioError("an array has no sample rate: pass sample_rate")
        return self._resampled([file], sample_rate)

    def _resampled(self, chunks: Iterable[npt.ArrayLike], sample_rate: int) -> Iterator[FloatArray]:
        """Convert the chunks of one stream (see `SampleConverter`) to mono pieces `[S]` at the model's rate."""
        sample_rate, converter = check_rate(sample_rate), None
        samples_of, samples, cancelled = SampleConverter(), 0, 0.0
        for chunk in chunks:
            audio_CS = samples_of.convert(chunk)
            check_range(audio_CS, samples / sample_rate, sample_rate)
            samples += audio_CS.shape[1]
            if converter is None or len(audio_CS) != len(converter.weights):
                if converter is not None:
                    yield converter.flush()[0]
                    cancelled += converter.cancelled_seconds
                converter = Converter(sample_rate, equal_weights(len(audio_CS)), self.sample_rate)
            yield converter.push(audio_CS)[0]
        if converter is not None:
            yield converter.flush()[0]
            warn_of_cancellation("the audio", cancelled + converter.cancelled_seconds)
