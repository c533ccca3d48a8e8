"""One job heard from its first sample to its last event."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event as StopEvent
from typing import TYPE_CHECKING

from slipstream.cli.ears import Ear
from slipstream.cli.jobs import Job
from slipstream.cli.streams import standard_input
from slipstream.errors import SlipstreamError

if TYPE_CHECKING:
    from slipstream.arrays import FloatArray
    from slipstream.audio import Channels, RawFormat
    from slipstream.transcript import Transcript

Progress = Callable[[float], None]
"""Called with the seconds of audio heard so far."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of a job. `complete` is false when it was stopped before its audio ended, or by an `error`.

    `seconds`: the time it took. `flush_seconds`: from the end of the audio to the last word.
    `delays`: for each word, how many seconds of audio were heard between its end and its whole text.
    """

    transcript: Transcript
    complete: bool
    seconds: float
    flush_seconds: float
    delays: tuple[float, ...]
    error: SlipstreamError | None = None


def hear(ear: Ear, job: Job, *, raw: RawFormat | None, stop: StopEvent, progress: Progress) -> Heard:
    """Transcribe one job. When `stop` is set its audio ends there: what was heard is still written to the last word.

    An error after the first word is the result's `error`. Before it raises `AudioError` as `audio.decode` does, and
    whatever the ear does.
    """
    from slipstream.audio import decode
    from slipstream.events import OpenWord, Recovered, Step, Word
    from slipstream.transcript import TranscriptBuilder

    def chunks() -> Iterator[FloatArray]:
        source = standard_input(stop) if job.path is None else job.path
        channels: Channels = "mix" if job.channel is None else "separate"
        for piece_CS in decode(source, raw=raw, channels=channels, track=job.track, sample_rate=ear.sample_rate):
            if stop.is_set():
                return
            yield piece_CS[job.channel or 0]

    builder = TranscriptBuilder()
    delays: list[float] = []
    text_came: dict[float, float] = {}
    heard = 0.0
    error: SlipstreamError | None = None
    started = time.perf_counter()
    try:
        for event in ear.stream(chunks()):
            builder.add(event)
            match event:
                case Step(index=index):
                    heard = index / ear.frame_rate
                    progress(heard)
                case OpenWord(start=start):
                    text_came[start] = heard
                case Word(start=start, end=end):
                    delays.append(text_came.pop(start, heard) - end)
                case Recovered(time=at, reason=reason):
                    logger.warning("%s: the model was started afresh at %.1f s: %s", job.name, at, reason)
    except SlipstreamError as broken:
        if not builder.words:
            raise
        error = broken
    return Heard(
        transcript=builder.build(ear.model, ear.delay, duration=heard),
        complete=error is None and not stop.is_set(),
        seconds=time.perf_counter() - started,
        flush_seconds=builder.final.flush_seconds if builder.final else 0.0,
        delays=tuple(delays),
        error=error,
    )
