"""Streams that start and end at random: in steps, and in sessions on the engine."""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from benchmarks.common import FreeRunner, Row, summary
from benchmarks.gpu.bench import Bench, noise
from benchmarks.gpu.peer import Moshi

from slipstream.arrays import BoolArray, FloatArray
from slipstream.backends.torch.runner import TorchRunner
from slipstream.engine.engine import Engine, StepReport
from slipstream.engine.live import LiveSession
from slipstream.engine.options import SessionOptions
from slipstream.errors import Overloaded
from slipstream.events import Event, Final
from slipstream.model.config import STTConfig
from slipstream.model.runner import State, StepOutput, StepwiseRunner
from slipstream.testing import tiny_tokenizer

FRAME_SECONDS = 0.08


def arrivals(bench: Bench) -> list[Row]:
    options, rows = bench.options, []
    bench.clear()
    rows.append({"package": "slipstream"} | step_through(bench.full_runner(options.streams), bench.config, options))
    if options.peer:
        bench.clear()
        peer = Moshi(bench.config, bench.device, bench.dtype, options.streams)
        peer.fill()
        rows.append({"package": "moshi"} | step_through(peer, bench.config, options))
    return rows


def live(bench: Bench) -> list[Row]:
    options = bench.options
    bench.clear()
    runner = Scripted(bench.runner(options.streams))
    rate = options.load * options.streams / options.session_seconds
    return [Live(runner, rate, options.session_seconds, options.seconds).run()]


def flush(bench: Bench) -> list[Row]:
    rows = []
    for busy in bench.options.busy:
        bench.clear()
        runner = Scripted(bench.runner(busy + max(1, busy // 8)))
        # Streams last a minute and are replaced, so that `busy` of them stay open.
        rows.append(Live(runner, busy / 60, 60.0, bench.options.seconds, at_start=busy).run())
    return rows


class Arrivals:
    """The slots in use, frame by frame, when streams start and end at random. The lowest free slot is used first."""

    def __init__(self, slots: int, load: float, session_seconds: float, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._ends = FRAME_SECONDS / session_seconds
        self._begins = load * slots * self._ends
        self.active_B = np.arange(slots) < round(load * slots)

    def __iter__(self) -> Iterator[list[int]]:
        """For each frame, the slots where a stream starts; `active_B` holds all slots in use."""
        while True:
            self.active_B &= self._random.random(len(self.active_B)) >= self._ends
            new = np.flatnonzero(~self.active_B)[: self._random.poisson(self._begins)]
            self.active_B[new] = True
            yield new.tolist()


def step_through(model: Any, config: STTConfig, options: argparse.Namespace) -> Row:
    """Step through `options.seconds` of audio while streams start and end."""
    occupancy = Arrivals(model.slots, options.load, options.session_seconds)
    pcm_BS, times, active = noise(model.slots, config), [], []
    for _, new in zip(range(10 + round(options.seconds / FRAME_SECONDS)), occupancy, strict=False):
        began = time.perf_counter()
        if new:
            model.reset(new)
        model.step(pcm_BS, occupancy.active_B)
        times.append(time.perf_counter() - began)
        active.append(int(occupancy.active_B.sum()))
    late = float(np.mean(np.array(times[10:]) > FRAME_SECONDS))
    return {"slots": model.slots, "active": float(np.mean(active)), **summary(times[10:]), "over_80_ms": late}


class Scripted(StepwiseRunner):
    """A runner that does all its work on the device, and returns the text of a script."""

    def __init__(self, runner: TorchRunner) -> None:
        self.runner, self.script = runner, FreeRunner(runner.slots)
        self.slots, self.frame_samples, self.frame_rate = runner.slots, runner.frame_samples, runner.frame_rate
        self.delay_frames = runner.delay_frames
        self._active_B = np.zeros(runner.slots, np.bool_)

    def reset(self, slots: Sequence[int], first_frame: int = 0) -> None:
        self.runner.reset(slots, first_frame=first_frame)
        self.script.reset(slots, first_frame=first_frame)

    def step(self, pcm_BS: FloatArray, active_B: BoolArray) -> StepOutput:
        self.runner.step(pcm_BS, active_B)
        return self.script.step(pcm_BS, active_B)

    def snapshot(self, slot: int) -> State:
        return self.runner.snapshot(slot), self.script.snapshot(slot)

    def restore(self, slot: int, state: State) -> None:
        self.runner.restore(slot, state[0])
        self.script.restore(slot, state[1])


@dataclass
class Live:
    """Sessions on an engine in real time that start at `rate` per second and end at random.

    One thread sends a frame of each every 80 ms. The end of speech is timed from `finish` to `Final`.
    """

    runner: Scripted
    rate: float
    session_seconds: float
    seconds: float
    at_start: int | None = None
    reports: list[StepReport] = field(default_factory=list)
    finals: list[float] = field(default_factory=list)
    refused: int = 0

    def run(self) -> Row:
        rng = np.random.default_rng(0)
        audio_S = rng.normal(0, 0.05, self.runner.frame_samples).astype(np.float32)
        open_now: deque[tuple[float, float, LiveSession]] = deque()  # next frame due, when it ends, the session
        with Engine(self.runner, tiny_tokenizer(), observer=self.reports.append) as engine:
            began = time.monotonic()
            at_start = round(self.rate * self.session_seconds) if self.at_start is None else self.at_start
            for phase in np.sort(rng.uniform(0, FRAME_SECONDS, at_start)):
                self._begin(engine, began + float(phase), rng, open_now)
            next_begins = began + float(rng.exponential(1 / self.rate))
            while (now := time.monotonic()) < began + self.seconds:
                if now >= next_begins:
                    self._begin(engine, now, rng, open_now)
                    next_begins += float(rng.exponential(1 / self.rate))
                while open_now and open_now[0][0] <= now:
                    due, ends, session = open_now.popleft()
                    session.offer(audio_S)
                    if due >= ends:
                        session.finish()
                    else:
                        self._insert(open_now, (due + FRAME_SECONDS, ends, session))
                first = min(next_begins, open_now[0][0] if open_now else math.inf)
                time.sleep(max(0.0, min(first - time.monotonic(), 0.005)))
        steps = self.reports[len(self.reports) // 20 :]  # the first twentieth warms up
        flushes = sorted(self.finals)
        return {
            "slots": self.runner.slots,
            "sessions": float(np.mean([step.sessions for step in steps])),
            "refused": self.refused,
            **summary([step.seconds for step in steps]),
            "lag_p99_ms": 1e3 * float(np.percentile([step.lag_seconds for step in steps], 99)),
            "ends": len(flushes),
            "end_to_last_word_median_ms": 1e3 * float(np.median(flushes)) if flushes else None,
            "end_to_last_word_p99_ms": 1e3 * float(np.percentile(flushes, 99)) if flushes else None,
        }

    def _begin(self, engine: Engine, due: float, rng: np.random.Generator, open_now: deque[Any]) -> None:
        ending = _Ending(self.finals)
        try:
            session = engine.open(SessionOptions(steps=True), wake=ending)
        except Overloaded:
            self.refused += 1
            return
        ending.session = session
        self._insert(open_now, (due, due + float(rng.exponential(self.session_seconds)), session))

    @staticmethod
    def _insert(open_now: deque[Any], item: tuple[float, float, LiveSession]) -> None:
        """Keep the order of time. A new item almost always belongs at the end."""
        at = len(open_now)
        while at and open_now[at - 1][0] > item[0]:
            at -= 1
        open_now.insert(at, item)


class _Ending:
    """Reads a session's events, and records how long its last flush took."""

    def __init__(self, finals: list[float]) -> None:
        self.finals = finals
        self.session: LiveSession | None = None

    def __call__(self) -> None:
        events: Iterable[Event] = self.session.take() if self.session is not None else ()
        self.finals += [event.flush_seconds for event in events if isinstance(event, Final)]
