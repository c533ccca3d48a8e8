"""Transcribe jobs, several at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from threading import Event as StopEvent
from typing import TYPE_CHECKING

from slipstream.cli.progress import progress_bar
from slipstream.cli.streams import standard_input
from slipstream.cli.transcribe.recognisers import Recogniser
from slipstream.cli.transcribe.sources import Job, duration
from slipstream.errors import SlipstreamError

if TYPE_CHECKING:
    from slipstream.arrays import FloatArray
    from slipstream.audio import Channels, RawFormat
    from slipstream.transcript import Transcript

Progress = Callable[[float], None]
"""Called with the seconds of audio transcribed so far."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a job.

    Args:
        transcript: The transcript, up to where the job ended.
        complete: False when the job was interrupted, or ended by an error.
        seconds: How long it took.
        flush_seconds: From the end of the audio to the last word.
        delays: Of each word: seconds of audio processed between its end and its complete text.
        error: What ended the job after its first word.
    """

    transcript: Transcript
    complete: bool
    seconds: float
    flush_seconds: float
    delays: tuple[float, ...]
    error: SlipstreamError | None = None

    @property
    def report(self) -> str:
        """The line of `--delay-report`."""
        speed = self.transcript.duration / self.seconds
        report = (
            f"{self.transcript.duration:.1f} s transcribed in {self.seconds:.1f} s, {speed:.1f}x real time; "
            f"last word {self.flush_seconds * 1000:.0f} ms after the end"
        )
        if not self.delays:
            return report
        worst = max(self.delays)
        return f"{report}; text after the end of a word: median {median(self.delays):.2f} s, at most {worst:.2f} s"


def transcribe_all(
    recogniser: Recogniser,
    jobs: Sequence[Job],
    slots: int,
    raw: RawFormat | None,
    stop: StopEvent,
    deliver: Callable[[Job, Result], None],
    in_order: bool,
) -> list[str]:
    """Transcribe jobs, `slots` at a time, and deliver each result.

    Args:
        in_order: Deliver in the order of `jobs`, otherwise as soon as a job ends.

    Returns:
        A message for each job that failed.
    """

    def work(job: Job) -> Result | None:
        if stop.is_set():
            return None
        return transcribe(recogniser, job, raw=raw, stop=stop, progress=partial(report, job.name))

    failures = []
    with progress_bar(duration(job, raw) for job in jobs) as report, _pool(slots, stop) as pool:
        job_of = {pool.submit(work, job): job for job in jobs}
        for future in job_of if in_order else as_completed(job_of):
            try:
                if result := future.result():
                    deliver(job_of[future], result)
                    if result.error:
                        raise result.error
            except SlipstreamError as error:
                failures.append(_failure(job_of[future], error))
    return failures


def transcribe(
    recogniser: Recogniser, job: Job, *, raw: RawFormat | None, stop: StopEvent, progress: Progress
) -> Result:
    """Transcribe one job. When `stop` is set its audio ends there, and the result holds all words up to there.

    An error after the first word is the result's `error`; an earlier one is raised.
    """
    from slipstream.audio import decode
    from slipstream.events import OpenWord, Recovered, Step, Word
    from slipstream.transcript import TranscriptBuilder

    def chunks() -> Iterator[FloatArray]:
        source = standard_input(stop) if job.path is None else job.path
        channels: Channels = "mix" if job.channel is None else "separate"
        rate = recogniser.sample_rate
        for piece_CS in decode(source, raw=raw, channels=channels, track=job.track, sample_rate=rate):
            if stop.is_set():
                return
            yield piece_CS[job.channel or 0]

    builder = TranscriptBuilder()
    delays: list[float] = []
    text_came: dict[float, float] = {}
    position = 0.0
    error: SlipstreamError | None = None
    started = time.perf_counter()
    try:
        for event in recogniser.stream(chunks()):
            builder.add(event)
            match event:
                case Step(index=index):
                    position = index / recogniser.frame_rate
                    progress(position)
                case OpenWord(start=start):
                    text_came[start] = position
                case Word(start=start, end=end):
                    delays.append(text_came.pop(start, position) - end)
                case Recovered(time=at, reason=reason):
                    logger.warning("%s: the model was reset at %.1f s: %s", job.name, at, reason)
    except SlipstreamError as failure:
        if not builder.words:
            raise
        error = failure
    return Result(
        transcript=builder.build(recogniser.model, recogniser.delay, duration=position),
        complete=error is None and not stop.is_set() and job.signal is None,
        seconds=time.perf_counter() - started,
        flush_seconds=builder.final.flush_seconds if builder.final else 0.0,
        delays=tuple(delays),
        error=error,
    )


@contextmanager
def _pool(workers: int, stop: StopEvent) -> Iterator[ThreadPoolExecutor]:
    """Run worker threads. An exception here also stops them; otherwise they would finish their files first."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield pool
        except BaseException:
            stop.set()
            raise


def _failure(job: Job, error: SlipstreamError) -> str:
    """Return an error message that begins with the job's name instead of the path, which may be a temporary copy."""
    message = str(error).removeprefix(f"{job.path or job.name}: ")
    return message if message.startswith(job.name) else f"{job.name}: {message}"
