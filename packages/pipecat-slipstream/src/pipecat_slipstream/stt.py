"""Speech-to-text on a Slipstream server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from loguru import logger
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InterimTranscriptionFrame,
    ProposedUserStartedSpeakingFrame,
    ProposedUserStoppedSpeakingFrame,
    STTMetadataFrame,
    TranscriptionFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pipecat.services.settings import STTSettings
from pipecat.services.stt_service import WebsocketSTTService
from pipecat.transcriptions.language import Language
from pipecat.turns.eager_end_of_turn_mixin import EagerEndOfTurnSTTServiceMixin
from pipecat.utils.errors import ErrorCategory, classify_http_status_code
from pipecat.utils.time import time_now_iso8601
from pipecat.utils.tracing.service_decorators import traced_stt

from slipstream.client import Queued, ServerError
from slipstream.dialogue import EagerEnd, Ended, Interim, Resumed, SpeechStarted, TurnEvent, TurnListener, Utterance
from slipstream.errors import SlipstreamError
from slipstream.hints import Hints, Keyword
from slipstream.language.identify import AUTO
from slipstream.resume import ResumableStream

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_EAGER_THRESHOLD = 0.4
TTFS_P99 = 0.6
PERMANENT_CLOSES = frozenset({1007, 1008, 1009})
"""Close codes of streams that broke the protocol: a second attempt fails, too."""
STOP_SECONDS = 5.0
"""How long the last words may take when the pipeline ends."""


@dataclass
class SlipstreamSTTSettings(STTSettings):
    """Settings of `SlipstreamSTTService`: `model`, one of the server's, and `language`.

    The language, such as `Language.FR`, is a hint for the server, and transcripts are marked with it. By default the
    server gets no hint, and transcripts are marked with English. A change of either opens a new stream.
    """


class SlipstreamSTTService(EagerEndOfTurnSTTServiceMixin, WebsocketSTTService):
    """Speech-to-text on a Slipstream server.

    By default the pipeline's own detector ends utterances: `VADUserStoppedSpeakingFrame` flushes the server, and the
    confirmed text is a finalized `TranscriptionFrame`. With `enable_turn_detection=True` the server ends turns, by the
    pause heads of its model, and the service recommends strategies that follow it.

    A lost connection is opened again. The audio without final text is sent again, and times continue.

    Args:
        base_url: Address of the server. The default is `SLIPSTREAM_URL`, or http://127.0.0.1:8080.
        api_key: Key of the server. The default is `SLIPSTREAM_API_KEY`; a server without keys needs none.
        sample_rate: Of the audio, in Hz; by default that of the pipeline.
        enable_turn_detection: Let the server end turns.
        enable_eager_end_of_turn: Report a probable end of turn, so that the answer can be prepared; needs
            `enable_turn_detection`.
        eager_eot_threshold: Probability of the pause head above which a turn has probably ended.
        pause_head: The pause head of this threshold; head 2 predicts that no new word follows within 2 s.
        should_interrupt: Whether speech interrupts the bot, where the server ends turns.
        keywords: Words and phrases that are likely to occur, as strings or `slipstream.Keyword`.
        prompt: Text before the speech: it sets names, spelling and style.
        settings: Model and language (`SlipstreamSTTSettings`), which can be changed in a running pipeline.
        ttfs_p99_latency: Time from the end of speech to the final text, 99th percentile, in seconds.
        **kwargs: For the base classes.
    """

    Settings = SlipstreamSTTSettings
    _settings: SlipstreamSTTSettings

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        sample_rate: int | None = None,
        enable_turn_detection: bool = False,
        enable_eager_end_of_turn: bool = False,
        eager_eot_threshold: float = DEFAULT_EAGER_THRESHOLD,
        pause_head: int = 2,
        should_interrupt: bool = True,
        keywords: Iterable[str | Keyword] = (),
        prompt: str = "",
        settings: SlipstreamSTTSettings | None = None,
        ttfs_p99_latency: float | None = TTFS_P99,
        **kwargs: Any,
    ) -> None:
        if enable_eager_end_of_turn and not enable_turn_detection:
            raise ValueError("enable_eager_end_of_turn=True needs enable_turn_detection=True")
        if not 0 < eager_eot_threshold <= 1:
            raise ValueError(f"eager_eot_threshold={eager_eot_threshold}: expected a probability above 0")
        if pause_head < 0:
            raise ValueError(f"pause_head={pause_head}: expected 0 or more")
        defaults = self.Settings(model=None, language=None)
        if settings is not None:
            defaults.apply_update(settings)
        super().__init__(
            sample_rate=sample_rate,
            enable_eager_end_of_turn=enable_eager_end_of_turn,
            ttfs_p99_latency=ttfs_p99_latency,
            settings=defaults,
            **kwargs,
        )
        self._url = base_url or os.environ.get("SLIPSTREAM_URL", DEFAULT_URL)
        self._key = api_key or os.environ.get("SLIPSTREAM_API_KEY")
        self._server_turns = enable_turn_detection
        self._eager_above = eager_eot_threshold if enable_eager_end_of_turn else None
        self._pause_head = pause_head
        self._should_interrupt = should_interrupt
        self._hints = Hints(keywords=keywords, prompt=prompt)
        self._hints = self._stream_hints  # refuses a language that is none
        self._stream: ResumableStream | None = None
        self._listener: TurnListener | None = None
        self._receive_task: asyncio.Task[None] | None = None

    def can_generate_metrics(self) -> bool:
        """Return True: the time to the final text is measured."""
        return True

    @property
    def supports_ttfs(self) -> bool:
        """Whether the time from the end of speech to the final text can be measured: the pipeline ends speech."""
        return not self._server_turns

    def service_metadata_frame(self) -> STTMetadataFrame:
        """Return the metadata, with strategies that follow the server's turns."""
        frame = super().service_metadata_frame()
        if self._server_turns:
            frame.user_turn_strategies = self.recommended_user_turn_strategies(
                enable_interruptions=self._should_interrupt
            )
        return frame

    async def setup(self, setup: FrameProcessorSetup) -> None:
        """Set up the service and connect."""
        await super().setup(setup)
        self._open_stream()
        await self._connect()

    async def stop(self, frame: EndFrame) -> None:
        """Write the last words, then disconnect."""
        if self._stream is not None and self._receive_task is not None:
            self._stream.finish()
            _, late = await asyncio.wait([self._receive_task], timeout=STOP_SECONDS)
            if late:
                logger.warning(f"{self}: the server has not written the last words within {STOP_SECONDS:g} s")
        await super().stop(frame)

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame | None, None]:
        """Add audio: 16-bit PCM. Its text arrives as separate frames."""
        if self._stream is not None:
            try:
                self._stream.send(np.frombuffer(audio, np.int16))
            except SlipstreamError as error:
                await self.push_error(str(error), exception=error)
        yield None

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Process a frame. The end of speech flushes the server, unless the server ends turns."""
        await super().process_frame(frame, direction)
        if isinstance(frame, VADUserStoppedSpeakingFrame) and not self._server_turns and self._listener is not None:
            self.request_finalize()
            self._listener.flush()

    async def _update_settings(self, delta: STTSettings) -> dict[str, Any]:
        changed = await super()._update_settings(delta)
        if ("model" in changed or "language" in changed) and self._stream is not None:
            await self._disconnect()
            self._open_stream()
            await self._connect()
        return changed

    def _open_stream(self) -> None:
        model = self._settings.model
        self._stream = ResumableStream(
            self._url,
            sample_rate=self.sample_rate,
            key=self._key,
            model=model if isinstance(model, str) else None,
            hints=self._stream_hints,
        )
        self._listener = TurnListener(
            self._stream, server_turns=self._server_turns, eager_above=self._eager_above, head=self._pause_head
        )

    # ---------------------------------------------------------------------------------------------------- connection

    async def _connect(self) -> None:
        await super()._connect()
        try:
            await self._connect_websocket()
        except ServerError as error:  # the receive loop connects again, unless that cannot help
            await self.push_error(f"{self}: {error}", exception=error)
        if self._receive_task is None:
            self._receive_task = self.create_task(self._receive_task_handler(self._report_error), name="receive")

    async def _disconnect(self) -> None:
        await super()._disconnect()
        if self._receive_task is not None:
            await self.cancel_task(self._receive_task)
            self._receive_task = None
        await self._disconnect_websocket()

    async def _connect_websocket(self) -> None:
        assert self._stream is not None
        await self._stream.connect()
        await self._call_event_handler("on_connected")

    async def _disconnect_websocket(self) -> None:
        if self._stream is not None and self._stream.connected:
            await self._stream.disconnect()
            await self._call_event_handler("on_disconnected")

    async def _verify_connection(self) -> bool:
        return self._stream is not None and self._stream.connected

    async def _receive_messages(self) -> None:
        assert self._stream is not None
        assert self._listener is not None
        async for event in self._stream:
            if isinstance(event, Queued):
                logger.info(f"{self}: waiting for a free slot, position {event.position}")
            for change in self._listener.handle(event):
                await self._handle_change(change)
        if self._stream.done:
            self._disconnecting = True  # the audio has ended: do not connect again
        elif not self._stream.connected:
            raise ServerError(f"{self._url}: not connected")

    def _classify_error(self, exception: Exception) -> ErrorCategory | None:
        if not isinstance(exception, ServerError):
            return None
        if exception.code is None:
            return ErrorCategory.CONNECTIVITY
        if exception.code < 1000:
            return classify_http_status_code(exception.code)
        return ErrorCategory.INVALID_REQUEST if exception.code in PERMANENT_CLOSES else ErrorCategory.SERVER

    # --------------------------------------------------------------------------------------------------------- turns

    async def _handle_change(self, change: TurnEvent) -> None:
        if isinstance(change, SpeechStarted):
            if self._server_turns:
                await self.broadcast_frame(ProposedUserStartedSpeakingFrame)
        elif isinstance(change, Interim):
            await self.push_frame(
                InterimTranscriptionFrame(
                    change.utterance.text,
                    self._user_id,
                    time_now_iso8601(),
                    self._language(change.utterance),
                    result=_result(change.utterance),
                )
            )
        elif isinstance(change, EagerEnd):
            await self._push_eager_end_of_turn(
                change.utterance.text,
                user_id=self._user_id,
                language=self._language(change.utterance),
                result=_result(change.utterance),
            )
        elif isinstance(change, Resumed):
            await self._cancel_eager_end_of_turn()
        elif isinstance(change, Ended):
            await self._end_turn(change)

    async def _end_turn(self, ended: Ended) -> None:
        self._clear_eager_end_of_turn()
        text = ended.utterance.text
        if not text:
            return
        language = self._language(ended.utterance)
        if ended.confirms:
            self.confirm_finalize()
        await self.emit_stt_usage_metrics()
        await self.push_frame(
            TranscriptionFrame(
                text,
                self._user_id,
                time_now_iso8601(),
                language,
                result=_result(ended.utterance),
                finalized=self._server_turns,
            )
        )
        await self._trace_transcription(text, True, language)
        if self._server_turns:
            await self.broadcast_frame(ProposedUserStoppedSpeakingFrame)

    @traced_stt
    async def _trace_transcription(self, transcript: str, is_final: bool, language: Language | None) -> None:
        """Record a final transcript for tracing."""

    @property
    def _stream_hints(self) -> Hints:
        language = self._settings.language
        return replace(self._hints, languages=[str(language)] if language else [])

    def _language(self, utterance: Utterance) -> Language | None:
        """Return what a transcript is marked with."""
        language = self._settings.language or Language.EN
        if language == AUTO:
            language = next((word.language for word in reversed(utterance.words) if word.language), Language.EN)
        try:
            return Language(language)
        except ValueError:
            return None


def _result(utterance: Utterance) -> dict[str, Any]:
    """Words with their times on the session's clock, in seconds, and their confidence."""
    return {
        "words": [asdict(word) for word in utterance.words],
        "start": utterance.start,
        "end": utterance.end,
        "confidence": utterance.confidence,
    }
