"""What a user holds: recordings to transcripts, streams to events, sessions over one engine."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Literal, overload

import numpy.typing as npt

from slipstream.aio import AsyncSession
from slipstream.audio import Resampler, decode, mix, to_float
from slipstream.engine.engine import Engine, LiveSession
from slipstream.engine.session import SessionOptions
from slipstream.errors import AudioError, SlipstreamError
from slipstream.formats import Transcript
from slipstream.text import Tokenizer
from slipstream.turns import TurnOptions
from slipstream.types import Event, Final, FloatArray, Recovered, Runner, Turn, Word

Source = str | os.PathLike[str] | npt.ArrayLike
"""A recording: a file, or its samples as an array `[S]` or `[C, S]`."""

logger = logging.getLogger(__name__)


class Transcriber:
    """A model ready to hear, as many streams at once as its Runner has slots.

    `model`: its name, for transcripts. `silence_prefix_seconds`: silence that the model wants before speech.
    `turns`: when a turn ends, for sessions that set nothing of their own.
    As a context manager it stops its engine in the end.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        model: str,
        silence_prefix_seconds: float = 0.0,
        turns: TurnOptions | None = None,
    ) -> None:
        self.model = model
        self.slots = runner.slots
        self.frame_rate = runner.frame_rate
        self.sample_rate = round(runner.frame_rate * runner.frame_samples)
        self.delay = runner.delay_frames / runner.frame_rate
        self.engine = Engine(runner, tokenizer, silence_prefix_seconds=silence_prefix_seconds, turns=turns)

    def transcribe(
        self, source: Source, sample_rate: int | None = None, *, options: SessionOptions | None = None
    ) -> Transcript:
        """Transcribe a recording: a file (audio or video, anything FFmpeg reads), or an array.

        `source`: a path, or samples `[S]` or `[C, S]`, floats within [-1, 1] or signed integers, at `sample_rate` Hz,
        which an array needs and a file does not. Channels are mixed. When every slot is taken it waits for one.
        Raises `AudioError` for what is no audio.
        """
        return self._transcribe(source, sample_rate, options, threading.Event())

    @overload
    def transcribe_many(self, sources: Iterable[Source], sample_rate: int | None = None) -> Iterator[Transcript]: ...
    @overload
    def transcribe_many(
        self, sources: Iterable[Source], sample_rate: int | None = None, *, return_exceptions: Literal[True]
    ) -> Iterator[Transcript | SlipstreamError]: ...
    def transcribe_many(
        self, sources: Iterable[Source], sample_rate: int | None = None, *, return_exceptions: bool = False
    ) -> Iterator[Transcript | SlipstreamError]:
        """Transcribe recordings, as many at once as there are slots; their transcripts in the order of `sources`.

        A recording that fails raises when its turn comes; with `return_exceptions` its error stands in its place, and
        the others go on.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(self.slots, "slipstream-transcribe") as pool:
            futures = [pool.submit(self._transcribe, source, sample_rate, None, stop) for source in sources]
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
        self, chunks: Iterable[npt.ArrayLike], sample_rate: int, *, options: SessionOptions | None = None
    ) -> Iterator[Event]:
        """Transcribe a stream as it comes: arrays `[S]` or `[C, S]` of any lengths, at `sample_rate` Hz.

        Yields the events that are there after each chunk, and after the last one all that are left, up to `Final`.
        When every slot is taken it waits for one, and says so in the log: streams that one thread reads by turns need a
        slot each.
        """
        if self.engine.active >= self.slots:
            logger.warning("all %d slots are taken: this stream waits for one; load more with slots=", self.slots)
        with self.session(options, wait=math.inf) as session:
            for audio_S in self._resampled(chunks, sample_rate):
                session.send(audio_S)
                yield from session.take()
            session.finish()
            yield from session

    def session(self, options: SessionOptions | None = None, *, wait: float = 0.0) -> LiveSession:
        """Open a session, to be sent mono audio at `self.sample_rate`; its events are read from it.

        When every slot is taken it waits its turn, for up to `wait` seconds.
        Raises `Overloaded` when there is neither a slot nor a place to wait.
        """
        return self.engine.open(options, wait=wait)

    def async_session(self, options: SessionOptions | None = None, *, wait: float = 0.0) -> AsyncSession:
        """`session` for asyncio; called in a running event loop."""
        return AsyncSession(lambda wake: self.engine.open(options, wait=wait, wake=wake))

    def close(self) -> None:
        """Stop the engine: sessions that are still open end with `SessionClosed`."""
        self.engine.close()

    def __enter__(self) -> Transcriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _transcribe(
        self, source: Source, sample_rate: int | None, options: SessionOptions | None, stop: threading.Event
    ) -> Transcript:
        events: list[Event] = []
        with self.session(options or SessionOptions(partials=False), wait=math.inf) as session:
            for audio_S in self._read(source, sample_rate):
                if stop.is_set():
                    break
                session.send(audio_S)
                events += session.take()
            session.finish()
            events += session
        for event in events:
            if isinstance(event, Recovered):
                logger.warning("%s at %.1f s: the model was started afresh", event.reason, event.time)
        return Transcript(
            words=tuple(event for event in events if isinstance(event, Word)),
            turns=tuple(event for event in events if isinstance(event, Turn)),
            duration=next(event.duration for event in events if isinstance(event, Final)),
            model=self.model,
            delay=self.delay,
        )

    def _read(self, source: Source, sample_rate: int | None) -> Iterator[FloatArray]:
        """Mono pieces `[S]` at the model's rate."""
        if isinstance(source, (str, os.PathLike)):
            if sample_rate is not None:
                raise AudioError(f"{source}: a file states its own sample rate; sample_rate is for arrays")
            return (audio_CS[0] for audio_CS in decode(source, sample_rate=self.sample_rate))
        if sample_rate is None:
            raise AudioError("an array does not state its sample rate: pass sample_rate")
        return self._resampled([source], sample_rate)

    def _resampled(self, chunks: Iterable[npt.ArrayLike], sample_rate: int) -> Iterator[FloatArray]:
        """Chunks of any shape `to_float` takes to mono pieces `[S]` at the model's rate."""
        resampler = Resampler(sample_rate, self.sample_rate)
        for chunk in chunks:
            yield resampler.push(mix(to_float(chunk)))[0]
        yield resampler.flush()[0]
