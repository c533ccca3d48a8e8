"""Recordings through a Runner: what was written, when it came, and what the pause heads said, frame by frame."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio import load
from slipstream.data.manifest import Recording, each
from slipstream.errors import SlipstreamError
from slipstream.events import Word
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.runner import Runner
from slipstream.model.text import PAUSE_FRAMES, Tokenizer, WordDecoder

TAIL_SECONDS = 3.0
"""Silence heard after each recording: room for the words still owed, and for an end of turn to be found."""


@dataclass(slots=True)
class Heard:
    """One recording as the model heard it.

    `words` in the recording's time. `came`: for each word, the seconds of audio that had been heard when its last
    token was written. `pause_TH`: the pause heads' probabilities after each frame, the silence after the end included.
    `voiced_until`: seconds until which the recording is louder than its background.
    """

    recording: Recording
    seconds: float
    voiced_until: float
    words: list[Word] = field(default_factory=list)
    came: list[float] = field(default_factory=list)
    pause_TH: FloatArray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of audio heard, the seconds that took, and the streams heard side by side."""

    audio: float
    taken: float
    streams: int

    @property
    def times_real_time(self) -> float:
        return self.audio / self.taken if self.taken else 0.0


def hear(
    runner: Runner,
    tokenizer: Tokenizer,
    recordings: Iterable[Recording],
    *,
    prefix_seconds: float = 0.0,
    on_error: Callable[[Recording, SlipstreamError], None] | None = None,
) -> tuple[list[Heard], Speed]:
    """Stream every recording through a slot of `runner`, as many side by side as it has slots.

    `prefix_seconds`: silence that the model wants before speech. `on_error` hears of each recording whose audio cannot
    be read; without it, that raises `AudioError`.
    """
    pending = each(recordings, lambda r: _Stream(r, runner, tokenizer, prefix_seconds), on_error)
    streams: list[_Stream | None] = [None] * runner.slots
    done: list[Heard] = []
    taken = 0.0
    pcm_BS = np.zeros((runner.slots, runner.frame_samples), np.float32)
    while True:
        for slot, stream in enumerate(streams):
            if stream is None and (started := next(pending, None)) is not None:
                runner.reset([slot])
                streams[slot] = started
        active_B = np.array([stream is not None for stream in streams])
        if not active_B.any():
            break
        for slot, stream in enumerate(streams):
            if stream is not None:
                pcm_BS[slot] = next(stream.frames)
        before = time.perf_counter()
        output = runner.step(pcm_BS, active_B)
        taken += time.perf_counter() - before
        for slot, stream in enumerate(streams):
            if stream is not None:
                stream.push(int(output.token_B[slot]), float(output.logprob_B[slot]), output.pause_BH[slot])
                if stream.finished:
                    done.append(stream.result())
                    streams[slot] = None
    return done, Speed(sum(heard.seconds for heard in done), taken, runner.slots)


def hear_samples(runner: Runner, tokenizer: Tokenizer, samples: FloatArray) -> tuple[list[Word], Speed]:
    """One stream of samples at the model's rate, through the first slot of `runner`."""
    runner.reset([0])
    decoder = WordDecoder(tokenizer, runner.delay_frames, runner.frame_rate, partials=False)
    pcm_BS = np.zeros((runner.slots, runner.frame_samples), np.float32)
    active_B = np.arange(runner.slots) == 0
    events: list[object] = []
    frames = _frames(samples, runner.frame_samples, 0)
    before = time.perf_counter()
    for _ in range(math.ceil(len(samples) / runner.frame_samples) + runner.delay_frames + PAUSE_FRAMES + 1):
        pcm_BS[0] = next(frames)
        output = runner.step(pcm_BS, active_B)
        events += decoder.push(int(output.token_B[0]), float(output.logprob_B[0]))
    events += decoder.flush()
    seconds = len(samples) / (runner.frame_samples * runner.frame_rate)
    return [e for e in events if isinstance(e, Word)], Speed(seconds, time.perf_counter() - before, 1)


class _Stream:
    """One recording on its way through a slot."""

    def __init__(self, recording: Recording, runner: Runner, tokenizer: Tokenizer, prefix_seconds: float) -> None:
        samples = load(recording.audio, round(runner.frame_samples * runner.frame_rate))
        rate = runner.frame_samples * runner.frame_rate
        self.rate, self.prefix = runner.frame_rate, round(prefix_seconds * runner.frame_rate)
        self.heard = Heard(recording, len(samples) / rate, _voiced_until(samples, rate))
        tail = max(math.ceil(TAIL_SECONDS * runner.frame_rate), runner.delay_frames + PAUSE_FRAMES + 1)
        self.left = self.prefix + math.ceil(len(samples) / runner.frame_samples) + tail
        self.frames = _frames(samples, runner.frame_samples, self.prefix)
        self.decoder = WordDecoder(
            tokenizer, runner.delay_frames, runner.frame_rate, offset_frames=-self.prefix, partials=False
        )
        self.index, self.last_token = 0, 0.0
        self.pauses: list[FloatArray] = []

    @property
    def finished(self) -> bool:
        return self.left == 0

    def push(self, token: int, logprob: float, pause_H: FloatArray) -> None:
        self.left -= 1
        self.index += 1
        now = (self.index - self.prefix) / self.rate
        self._take(self.decoder.push(token, logprob))
        if token not in (PAD_ID, WORD_ID):
            self.last_token = now
        if self.index > self.prefix:
            self.pauses.append(pause_H.copy())

    def result(self) -> Heard:
        self._take(self.decoder.flush())
        self.heard.pause_TH = np.array(self.pauses, np.float32)
        return self.heard

    def _take(self, events: Iterable[object]) -> None:
        for event in events:
            if isinstance(event, Word):
                self.heard.words.append(event)
                self.heard.came.append(self.last_token)


def _frames(samples: FloatArray, size: int, prefix: int) -> Iterator[FloatArray]:
    silence = np.zeros(size, np.float32)
    for _ in range(prefix):
        yield silence
    for start in range(0, len(samples), size):
        piece = samples[start : start + size]
        yield np.pad(piece, (0, size - len(piece)))
    while True:
        yield silence


def _voiced_until(samples: FloatArray, rate: float) -> float:
    """The end of the last 20 ms within 30 dB of the loudest."""
    size = round(rate / 50)
    if len(samples) < size:
        return len(samples) / rate
    power = np.square(samples[: len(samples) // size * size]).reshape(-1, size).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 1e-3)
    return float((loud[-1] + 1) * size / rate) if len(loud) else len(samples) / rate
