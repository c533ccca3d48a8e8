"""Transcribe recordings through engine sessions, as users do, and keep the time of each word and frame."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio import load
from slipstream.data.manifest import Recording, each
from slipstream.engine.options import SessionOptions
from slipstream.errors import SlipstreamError
from slipstream.events import OpenWord, PartialWord, Step, Word
from slipstream.hints import Hints
from slipstream.model.text import PAUSE_FRAMES
from slipstream.transcriber import Transcriber

TAIL_SECONDS = 3.0
"""Silence after each recording, in which the model finds the end of the turn."""
_PIECE_SECONDS = 10


@dataclass(slots=True)
class Hypothesis:
    """What a model wrote for one recording.

    Attributes:
        seconds: length of the recording.
        voiced_until: seconds until which the recording is louder than its background.
        words: in the recording's time.
        emitted: for each word, the seconds of audio that were processed when its whole text was out: at its last token,
            or a frame later where the gate of `SessionOptions.min_confidence` waits for its confidence.
        pause_TH: the pause heads' probabilities after each frame, those of the silence after the end included.
        ending_T: the probability that ends a turn, after the same frames; empty for a model without pause heads.
    """

    recording: Recording
    seconds: float
    voiced_until: float
    words: list[Word] = field(default_factory=list)
    emitted: list[float] = field(default_factory=list)
    pause_TH: FloatArray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    ending_T: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of audio, the seconds taken to read and transcribe it, and the number of concurrent streams."""

    audio: float
    taken: float
    streams: int

    @property
    def times_real_time(self) -> float:
        return self.audio / self.taken if self.taken else 0.0


def transcribe_recordings(
    transcriber: Transcriber,
    recordings: Iterable[Recording],
    *,
    on_error: Callable[[Recording, SlipstreamError], None] | None = None,
    min_confidence: float | None = None,
    hints: Hints | None = None,
) -> tuple[list[Hypothesis], Speed]:
    """Transcribe recordings, as many concurrently as the transcriber has slots for.

    Args:
        on_error: called with each recording whose audio cannot be read. Without it, that raises `AudioError`.
        min_confidence: See `SessionOptions`; None uses the model's configuration.
        hints: those of every recording; without a beam in them, it is the transcriber's.

    Returns:
        The hypotheses, in the order of `recordings`, and the speed.
    """

    def result(pending: tuple[Recording, Future[Hypothesis]]) -> Hypothesis:
        return pending[1].result()

    def report(pending: tuple[Recording, Future[Hypothesis]], error: SlipstreamError) -> None:
        if on_error is None:
            raise error
        on_error(pending[0], error)

    hints = (hints or Hints()).with_beam(transcriber.beam)
    options = SessionOptions(steps=True, min_confidence=min_confidence, hints=hints)
    streams = max(1, transcriber.slots // options.hints.width)
    before = time.perf_counter()
    pool = ThreadPoolExecutor(streams, "slipstream-evaluate")
    try:
        submitted = [(recording, pool.submit(_transcribe, transcriber, recording, options)) for recording in recordings]
        hypotheses = list(each(submitted, result, report))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    seconds = sum(hypothesis.seconds for hypothesis in hypotheses)
    return hypotheses, Speed(seconds, time.perf_counter() - before, streams)


def transcribe_samples(transcriber: Transcriber, samples: FloatArray) -> list[Word]:
    """Transcribe one recording, samples `[S]` at the transcriber's sample rate, with the transcriber's beam."""
    hints = Hints().with_beam(transcriber.beam)
    return _run(transcriber, samples, SessionOptions(steps=True, hints=hints)).words


def _transcribe(transcriber: Transcriber, recording: Recording, options: SessionOptions) -> Hypothesis:
    rate = transcriber.sample_rate
    samples = load(recording.audio, rate)
    frame = round(rate / transcriber.frame_rate)
    lag = transcriber.engine.format.lag_frames  # the pauses of a frame come so much later than in live streams
    tail = max(
        math.ceil(TAIL_SECONDS * transcriber.frame_rate) + lag,
        round(transcriber.delay * transcriber.frame_rate) + PAUSE_FRAMES + 1,
    )
    padded = np.pad(samples, (0, -len(samples) % frame + tail * frame))
    run = _run(transcriber, padded, options)
    pause_TH = np.array([step.pause for step in run.steps[lag:]], np.float32)
    ending_T = np.array([step.end_of_turn for step in run.steps if step.end_of_turn is not None], np.float32)
    voiced_until = _voiced_until(samples, rate)
    return Hypothesis(recording, len(samples) / rate, voiced_until, run.words, run.emitted, pause_TH, ending_T)


@dataclass(frozen=True, slots=True)
class _Run:
    """The words of one session, when each was written, and its frames."""

    words: list[Word] = field(default_factory=list)
    emitted: list[float] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


def _run(transcriber: Transcriber, samples: FloatArray, options: SessionOptions) -> _Run:
    run = _Run()
    shown: float | None = None

    def read(events: Iterable[object]) -> None:
        nonlocal shown
        for event in events:
            now = (len(run.steps) + 1) / transcriber.frame_rate  # events come before the `Step` of their frame
            if isinstance(event, Step):
                run.steps.append(event)
            elif isinstance(event, PartialWord) or (isinstance(event, OpenWord) and shown is None):
                shown = now
            elif isinstance(event, Word):
                run.words.append(event)
                run.emitted.append(now if shown is None else shown)
                shown = None

    with transcriber.session(options, wait=math.inf) as session:
        size = _PIECE_SECONDS * transcriber.sample_rate
        for start in range(0, len(samples), size):
            session.send(samples[start : start + size])
            read(session.take())
        session.finish()
        read(session)
    return run


def _voiced_until(samples: FloatArray, rate: float) -> float:
    """The end of the last 20 ms within 30 dB of the loudest."""
    size = round(rate / 50)
    if len(samples) < size:
        return len(samples) / rate
    power = np.square(samples[: len(samples) // size * size]).reshape(-1, size).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 1e-3)
    return float((loud[-1] + 1) * size / rate) if len(loud) else len(samples) / rate
