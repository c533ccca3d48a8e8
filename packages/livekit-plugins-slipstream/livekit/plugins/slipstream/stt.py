"""Speech-to-text on a Slipstream server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from livekit import rtc
from livekit.agents import (
    DEFAULT_API_CONNECT_OPTIONS,
    NOT_GIVEN,
    APIConnectionError,
    APIConnectOptions,
    APIError,
    APIStatusError,
    APITimeoutError,
    LanguageCode,
    NotGivenOr,
    stt,
    utils,
)
from livekit.agents.types import TimedString
from livekit.agents.utils import AudioBuffer, is_given

from slipstream.client import AsyncStream, Queued, ServerError, open_async_stream
from slipstream.dialogue import EagerEnd, Ended, Interim, SpeechStarted, TurnEvent, TurnListener, Utterance
from slipstream.errors import ConfigError, SlipstreamError
from slipstream.events import Word
from slipstream.hints import Hints, Keyword
from slipstream.language.identify import AUTO
from slipstream.resume import ResumableStream

from .log import logger

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_LANGUAGE = "en"
PERMANENT_CLOSES = frozenset({1007, 1008, 1009})
"""Close codes of streams that broke the protocol: a second attempt fails, too."""


@dataclass(frozen=True, slots=True)
class Options:
    url: str
    key: str | None
    model: str | None
    sample_rate: int
    eager_above: float | None
    pause_head: int
    server_turns: bool
    hints: Hints

    def language(self, utterance: Utterance) -> LanguageCode:
        """Return what a transcript is marked with."""
        language = next(iter(self.hints.languages), DEFAULT_LANGUAGE)
        if language == AUTO:
            identified = (word.language for word in reversed(utterance.words) if word.language)
            language = next(identified, DEFAULT_LANGUAGE)
        return LanguageCode(language)

    def speaking(self, language: NotGivenOr[str]) -> Options:
        """Return the options for speech in a language, if one is given."""
        if not is_given(language):
            return self
        return replace(self, hints=replace(self.hints, languages=[LanguageCode(language)]))


class STT(stt.STT):
    """Speech-to-text on a Slipstream server.

    Args:
        base_url: Address of the server. The default is `SLIPSTREAM_URL`, or http://127.0.0.1:8080.
        api_key: Key of the server. The default is `SLIPSTREAM_API_KEY`; a server without keys needs none.
        model: One of the server's models; by default its first.
        language: Language of the speech, such as `fr`: a hint for the server, and what transcripts are marked with.
            With `auto`, the mark is the language of their words. By default it is `en`, and the server gets no hint.
        sample_rate: Rate at which audio is sent, in Hz.
        eager_eot_threshold: Probability of the pause head above which a `PREFLIGHT_TRANSCRIPT` is sent. By default none
            is sent.
        pause_head: The pause head for the eager threshold; head 2 predicts that no new word follows within 2 s.
        server_turns: Send `END_OF_SPEECH` where the server ends a turn, for `turn_detection="stt"`. Otherwise the
            agent's own detector ends turns, and flushes the stream.
        keyterms: Words and phrases that are likely to occur, as strings or `slipstream.Keyword`. Those that the agent's
            session adds hold for streams that begin later.
        prompt: Text before the speech: it sets names, spelling and style.
    """

    def __init__(
        self,
        *,
        base_url: NotGivenOr[str] = NOT_GIVEN,
        api_key: NotGivenOr[str] = NOT_GIVEN,
        model: NotGivenOr[str] = NOT_GIVEN,
        language: NotGivenOr[str] = NOT_GIVEN,
        sample_rate: int = 24_000,
        eager_eot_threshold: NotGivenOr[float] = NOT_GIVEN,
        pause_head: int = 2,
        server_turns: bool = True,
        keyterms: Iterable[str | Keyword] = (),
        prompt: str = "",
    ) -> None:
        if is_given(eager_eot_threshold) and not 0 < eager_eot_threshold <= 1:
            raise ConfigError(f"eager_eot_threshold={eager_eot_threshold}: expected a probability above 0")
        if pause_head < 0:
            raise ConfigError(f"pause_head={pause_head}: expected 0 or more")
        super().__init__(
            capabilities=stt.STTCapabilities(
                streaming=True,
                interim_results=True,
                aligned_transcript="word",
                offline_recognize=True,
                keyterms=True,
                manual_flush=True,
            )
        )
        self._options = Options(
            url=base_url if is_given(base_url) else os.environ.get("SLIPSTREAM_URL", DEFAULT_URL),
            key=api_key if is_given(api_key) else os.environ.get("SLIPSTREAM_API_KEY"),
            model=model if is_given(model) else None,
            sample_rate=sample_rate,
            eager_above=eager_eot_threshold if is_given(eager_eot_threshold) else None,
            pause_head=pause_head,
            server_turns=server_turns,
            hints=Hints(keywords=keyterms, prompt=prompt),
        ).speaking(language)
        self._keyterms = self._options.hints.keywords
        self._streams = weakref.WeakSet[SpeechStream]()

    @property
    def model(self) -> str:
        return self._options.model or "default"

    @property
    def provider(self) -> str:
        return "Slipstream"

    def stream(
        self,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> SpeechStream:
        stream = SpeechStream(stt=self, options=self._options.speaking(language), conn_options=conn_options)
        self._streams.add(stream)
        return stream

    def _update_session_keyterms(self, keyterms: list[str]) -> None:
        keywords = [*self._keyterms, *keyterms]
        self._options = replace(self._options, hints=replace(self._options.hints, keywords=keywords))
        for stream in self._streams:
            stream._stream.hints = replace(stream._options.hints, keywords=keywords)

    async def aclose(self) -> None:
        for stream in list(self._streams):
            await stream.aclose()

    async def _recognize_impl(
        self,
        buffer: AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> stt.SpeechEvent:
        options = self._options.speaking(language)
        frame = rtc.combine_audio_frames(buffer)
        with _api_errors():
            async with contextlib.AsyncExitStack() as exits:
                opening = open_async_stream(
                    options.url,
                    sample_rate=frame.sample_rate,
                    key=options.key,
                    model=options.model,
                    hints=options.hints,
                )
                stream = await asyncio.wait_for(exits.enter_async_context(opening), conn_options.timeout)
                sending = asyncio.create_task(_send_whole(stream, _mono(frame)))
                try:
                    words = [event async for event in stream if isinstance(event, Word)]
                finally:
                    await utils.aio.cancel_and_wait(sending)
        utterance = Utterance(tuple(words))
        return stt.SpeechEvent(
            type=stt.SpeechEventType.FINAL_TRANSCRIPT,
            request_id=stream.request_id,
            alternatives=[_speech_data(utterance, options.language(utterance), offset=0.0)],
        )


class SpeechStream(stt.RecognizeStream):
    """A live stream. A lost connection is opened again as often as `conn_options` allows, and no word is lost."""

    def __init__(self, *, stt: STT, options: Options, conn_options: APIConnectOptions) -> None:
        # First, because the base class starts the task that uses them.
        self._options = options
        self._stream = ResumableStream(
            options.url,
            sample_rate=options.sample_rate,
            key=options.key,
            model=options.model,
            hints=options.hints,
        )
        self._listener = TurnListener(
            self._stream, server_turns=options.server_turns, eager_above=options.eager_above, head=options.pause_head
        )
        self._offset: float | None = None
        self._began = 0.0
        self._reported = 0.0
        super().__init__(stt=stt, conn_options=conn_options, sample_rate=options.sample_rate)

    async def _run(self) -> None:
        # The framework moves both clocks with each attempt. The stream's clock continues over all of them.
        if self._offset is None:
            self._offset, self._began = self.start_time_offset, self.start_time
        self.start_time_offset, self.start_time = self._offset, self._began
        tasks: list[asyncio.Task[None]] = []
        try:
            with _api_errors():
                await asyncio.wait_for(self._stream.connect(), self._conn_options.timeout)
                tasks = [asyncio.create_task(self._read_input()), asyncio.create_task(self._receive())]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                for task in tasks:
                    if task.done():
                        task.result()
        finally:
            await utils.aio.cancel_and_wait(*tasks)
            await self._stream.disconnect()

    async def _receive(self) -> None:
        async for event in self._stream:
            if isinstance(event, Queued):
                logger.info("waiting for a free slot", extra={"position": event.position})
            for change in self._listener.handle(event):
                self._emit(change)
        self._report_usage()

    async def _read_input(self) -> None:
        async for item in self._input_ch:
            if isinstance(item, self._FlushSentinel):
                self._listener.flush()
            else:
                self._stream.send(_mono(item))
        self._stream.finish()

    def _emit(self, change: TurnEvent) -> None:
        kinds = stt.SpeechEventType
        if isinstance(change, SpeechStarted):
            self._send(kinds.START_OF_SPEECH, speech_start_time=self._began + change.time)
        elif isinstance(change, Interim):
            self._send(kinds.INTERIM_TRANSCRIPT, change.utterance)
        elif isinstance(change, EagerEnd):
            self._send(kinds.PREFLIGHT_TRANSCRIPT, change.utterance)
        elif isinstance(change, Ended):
            self._send(kinds.FINAL_TRANSCRIPT, change.utterance)
            if change.utterance.words and not self._listener.speaking:
                self._send(kinds.END_OF_SPEECH)
            self._report_usage()

    def _send(
        self, kind: stt.SpeechEventType, utterance: Utterance | None = None, speech_start_time: float | None = None
    ) -> None:
        alternatives = []
        if utterance is not None:
            alternatives.append(_speech_data(utterance, self._options.language(utterance), self._offset or 0.0))
        self._event_ch.send_nowait(
            stt.SpeechEvent(
                type=kind,
                request_id=self._stream.request_id,
                alternatives=alternatives,
                speech_start_time=speech_start_time,
            )
        )

    def _report_usage(self) -> None:
        seconds = self._stream.duration - self._reported
        if seconds > 0:
            self._reported += seconds
            self._event_ch.send_nowait(
                stt.SpeechEvent(
                    type=stt.SpeechEventType.RECOGNITION_USAGE,
                    request_id=self._stream.request_id,
                    recognition_usage=stt.RecognitionUsage(audio_duration=seconds),
                )
            )


def _speech_data(utterance: Utterance, language: LanguageCode, offset: float) -> stt.SpeechData:
    return stt.SpeechData(
        language=language,
        text=utterance.text,
        start_time=utterance.start + offset,
        end_time=utterance.end + offset,
        confidence=utterance.confidence,
        words=[
            TimedString(
                word.text,
                start_time=word.start + offset,
                end_time=word.end + offset,
                confidence=word.confidence,
                start_time_offset=offset,
            )
            for word in utterance.words
        ],
    )


def _mono(frame: rtc.AudioFrame) -> npt.NDArray[np.float32]:
    samples_SC = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
    mono_S: npt.NDArray[np.float32] = samples_SC.mean(axis=1, dtype=np.float32) / 32768
    return mono_S


@contextlib.contextmanager
def _api_errors() -> Iterator[None]:
    """Turn errors into those of LiveKit, which repeats what may succeed the next time."""
    try:
        yield
    except ServerError as error:
        if error.code is not None and error.code < 1000:
            raise APIStatusError(str(error), status_code=error.code) from error
        if error.code in PERMANENT_CLOSES:
            raise APIError(str(error), retryable=False) from error
        raise APIConnectionError(str(error)) from error
    except SlipstreamError as error:
        raise APIError(str(error), retryable=False) from error
    except asyncio.TimeoutError as error:
        raise APITimeoutError("the server did not respond in time") from error


async def _send_whole(stream: AsyncStream, samples_S: npt.NDArray[np.float32]) -> None:
    with contextlib.suppress(ServerError):  # the reader gets it, too
        for start in range(0, len(samples_S), 24_000):
            await stream.send(samples_S[start : start + 24_000])
        await stream.finish()
