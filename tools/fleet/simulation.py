"""The simulation: streams that come and go, devices that start, fail and stop, in steps of a fixed length.

Streams are counted, not followed, so a day of a million concurrent streams costs as much as one of a thousand. This is
exact for lengths that are a mixture of exponential ones: how long a stream still lasts does not depend on its age. A
balancer counts connections, so a stream waits only if the slots of all devices are in use.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

FRAME_MS = 80.0
DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class StepCost:
    """Measured milliseconds of a step by the number of streams; linear in between and beyond."""

    points: tuple[tuple[int, float], ...]

    def ms(self, streams: float) -> float:
        """Return the milliseconds of a step of `streams` streams."""
        xs, ys = zip(*sorted(self.points), strict=True)
        if len(xs) > 1 and streams > xs[-1]:
            return float(ys[-1] + (streams - xs[-1]) * (ys[-1] - ys[-2]) / (xs[-1] - xs[-2]))
        return float(np.interp(streams, xs, ys))

    def streams(self, budget_ms: float, memory: int) -> int:
        """Return the most streams whose step takes at most `budget_ms`. `memory`: how many fit into memory."""
        low, high = 0, memory
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.ms(middle) <= budget_ms else (low, middle - 1)
        return low


@dataclass(frozen=True, slots=True)
class Load:
    """Arrivals and lengths of streams. Times in seconds.

    Args:
        peak: Concurrent streams at the busiest time of the day, if none waits.
        trough: Arrivals at the quietest time, as a share of those at the busiest.
        lengths: Share of the streams and mean length, for each kind of stream.
        surge: Further arrivals, as a share of those at the peak, from `surge_at` for `surge_seconds`.
        patience: How long a stream waits for a slot before it gives up.
    """

    peak: float
    trough: float = 0.2
    lengths: tuple[tuple[float, float], ...] = ((0.7, 60.0), (0.3, 860.0))
    surge: float = 0.0
    surge_at: float = DAY / 2
    surge_seconds: float = 600.0
    patience: float = math.inf

    @property
    def mean_length(self) -> float:
        return sum(share * mean for share, mean in self.lengths)

    def arrivals(self, time_T: np.ndarray) -> np.ndarray:
        """Return the arrivals per second at each time. The peak is at noon."""
        level_T = self.trough + (1 - self.trough) * (0.5 - 0.5 * np.cos(2 * np.pi * time_T / DAY))
        in_surge_T = (time_T >= self.surge_at) & (time_T < self.surge_at + self.surge_seconds)
        return self.peak / self.mean_length * (level_T + self.surge * in_surge_T)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Devices and their autoscaler. Times in seconds.

    Args:
        slots: Streams per device.
        devices: At the beginning, and at least.
        most: At most; equal to `devices` for a fleet of fixed size.
        target: Share of the slots that the autoscaler aims at, as in deploy/kubernetes.
        interval: How often it decides.
        start_seconds: From the decision to the first stream: a node, an image, a model.
        up_share: Devices added per minute, as a share of the fleet.
        down_share: Devices removed per `down_every`, as a share of the fleet; at least one.
        down_seconds: Only what was superfluous for this long is removed.
        failure_hours: Mean time between failures of a device.
        restart_seconds: Until a failed device takes streams again.
    """

    slots: int
    devices: int
    most: int
    target: float = 0.7
    interval: float = 15.0
    start_seconds: float = 180.0
    up_share: float = 1.0
    down_share: float = 0.05
    down_every: float = 120.0
    down_seconds: float = 600.0
    failure_hours: float = math.inf
    restart_seconds: float = 60.0


@dataclass
class Report:
    """What happened. `waits`: streams by the seconds that they waited for their slot."""

    waits: dict[float, int] = field(default_factory=dict)
    gave_up: int = 0
    moved_by_failures: int = 0
    moved_by_scaling: int = 0
    failures: int = 0
    most_devices: int = 0
    device_seconds: float = 0.0
    stream_seconds: float = 0.0
    slot_seconds: float = 0.0

    @property
    def served(self) -> int:
        return sum(self.waits.values())

    def waited(self, seconds: float = 0.0) -> float:
        """Return the share of all streams that waited longer than `seconds` or gave up."""
        longer = sum(count for wait, count in self.waits.items() if wait > seconds)
        return (longer + self.gave_up) / max(1, self.served + self.gave_up)

    def percentile(self, share: float) -> float:
        """Return the wait within which this share of the served streams got a slot."""
        left = share * self.served
        for wait, count in sorted(self.waits.items()):
            left -= count
            if left <= 0:
                return wait
        return 0.0

    @property
    def mean_wait(self) -> float:
        return sum(wait * count for wait, count in self.waits.items()) / max(1, self.served)


def simulate(load: Load, fleet: Fleet, *, seconds: float = DAY, tick: float = 1.0, seed: int = 0) -> Report:
    """Run a fleet for `seconds`, in steps of `tick` seconds. Waits are multiples of `tick`."""
    return _Simulation(load, fleet, tick, np.random.default_rng(seed)).run(seconds)


class _Simulation:
    def __init__(self, load: Load, fleet: Fleet, tick: float, random: np.random.Generator) -> None:
        self._load, self._fleet, self._tick, self._random = load, fleet, tick, random
        self._leave = [min(1.0, tick / mean) for _, mean in load.lengths]  # so that the mean length is exact
        self._active = [0] * len(load.lengths)
        self._queue: deque[tuple[float, list[int]]] = deque()  # when they came, and how many of each kind
        self._moved = [0] * len(load.lengths)  # lost their device: they are served first
        self._ready = fleet.devices
        self._starting: deque[tuple[float, int]] = deque()  # when they are ready, in this order
        self._restarting: deque[tuple[float, int]] = deque()
        self._wanted: deque[tuple[float, int]] = deque()
        self._next_decision = self._next_removal = 0.0
        self._added: deque[tuple[float, int]] = deque()
        self._report = Report()

    def run(self, seconds: float) -> Report:
        times_T = np.arange(0.0, seconds, self._tick)
        rates_T = self._load.arrivals(times_T) * self._tick
        arrivals_KT = [self._random.poisson(rates_T * share).tolist() for share, _ in self._load.lengths]
        for now, *arrived in zip(times_T.tolist(), *arrivals_KT, strict=True):
            self._start(now)
            self._fail(now)
            self._end()
            self._queue.append((now, arrived))
            self._serve(now)
            if self._fleet.most > self._fleet.devices and now >= self._next_decision:
                self._next_decision = now + self._fleet.interval
                self._scale(now)
            self._measure()
        return self._report

    # ------------------------------------------------------------------------------------------------------ streams

    def _end(self) -> None:
        self._active = [
            count - int(self._random.binomial(count, leave)) if count else 0
            for count, leave in zip(self._active, self._leave, strict=True)
        ]

    def _serve(self, now: float) -> None:
        free = self._ready * self._fleet.slots - sum(self._active)
        for kind, count in enumerate(self._moved):
            taken = min(free, count)
            self._moved[kind] -= taken
            self._active[kind] += taken
            free -= taken
        while self._queue:
            came, counts = self._queue[0]
            if now - came > self._load.patience:
                self._report.gave_up += sum(counts)
                self._queue.popleft()
                continue
            waiting = sum(counts)
            taken_K = counts if waiting <= free else self._some(counts, free)
            taken = sum(taken_K)
            if taken:
                self._report.waits[now - came] = self._report.waits.get(now - came, 0) + taken
                self._active = [a + b for a, b in zip(self._active, taken_K, strict=True)]
                free -= taken
            if taken < waiting:
                self._queue[0] = came, [a - b for a, b in zip(counts, taken_K, strict=True)]
                break
            self._queue.popleft()

    def _some(self, counts: list[int], number: int) -> list[int]:
        """Choose a number of streams at random, of each kind."""
        return [int(count) for count in self._random.multivariate_hypergeometric(counts, max(0, number))]

    def _move(self, devices: int) -> int:
        """Take the streams from devices that stop. Returns how many."""
        slots, active = self._ready * self._fleet.slots, sum(self._active)
        lost = int(self._random.hypergeometric(active, slots - active, devices * self._fleet.slots))
        lost_K = self._some(self._active, lost)
        self._active = [a - b for a, b in zip(self._active, lost_K, strict=True)]
        self._moved = [a + b for a, b in zip(self._moved, lost_K, strict=True)]
        self._ready -= devices
        return lost

    # ------------------------------------------------------------------------------------------------------ devices

    def _start(self, now: float) -> None:
        for coming in (self._starting, self._restarting):
            while coming and coming[0][0] <= now:
                self._ready += coming.popleft()[1]

    def _fail(self, now: float) -> None:
        if math.isinf(self._fleet.failure_hours) or not self._ready:
            return
        share = 1 - math.exp(-self._tick / (3600 * self._fleet.failure_hours))
        if failed := int(self._random.binomial(self._ready, share)):
            self._report.failures += failed
            self._report.moved_by_failures += self._move(failed)
            self._restarting.append((now + self._fleet.restart_seconds, failed))

    @property
    def _devices(self) -> int:
        return self._ready + sum(count for _, count in (*self._starting, *self._restarting))

    def _scale(self, now: float) -> None:
        """Decide as the HorizontalPodAutoscaler does with the manifests of deploy/kubernetes and KEDA."""
        fleet, devices = self._fleet, self._devices
        streams = sum(self._active) + sum(self._moved) + sum(sum(counts) for _, counts in self._queue)
        wanted = min(fleet.most, max(fleet.devices, math.ceil(streams / (fleet.slots * fleet.target))))
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - fleet.down_seconds:
            self._wanted.popleft()
        while self._added and self._added[0][0] <= now - 60:
            self._added.popleft()
        before = devices - sum(count for _, count in self._added)
        add = min(wanted - devices, math.ceil(before * (1 + fleet.up_share)) - devices)
        if add > 0:
            self._added.append((now, add))
            self._starting.append((now + fleet.start_seconds, add))
            return
        remove = devices - max(count for _, count in self._wanted)
        if remove > 0 and now >= self._next_removal and not self._starting:
            self._next_removal = now + fleet.down_every
            remove = min(remove, max(1, int(devices * fleet.down_share)), self._ready)
            self._report.moved_by_scaling += self._move(remove)

    def _measure(self) -> None:
        report, devices, active = self._report, self._devices, sum(self._active)
        report.most_devices = max(report.most_devices, devices)
        report.device_seconds += devices * self._tick
        report.stream_seconds += active * self._tick
        report.slot_seconds += self._ready * self._fleet.slots * self._tick
