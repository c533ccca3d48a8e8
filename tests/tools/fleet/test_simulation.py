"""The simulation against queueing theory, a simulation that follows each stream, and conservation of streams."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tools.fleet.__main__ import main
from tools.fleet.queueing import erlang_b, erlang_c
from tools.fleet.simulation import Fleet, Load, Report, StepCost, simulate

MIXED = ((0.7, 10.0), (0.3, 60.0))


def steady(peak: float, **options: Any) -> Load:
    return Load(peak, trough=1.0, **options)


def fixed(slots: int, devices: int = 1, **options: Any) -> Fleet:
    return Fleet(slots, devices, devices, **options)


def test_lost_streams_are_erlangs() -> None:
    report = simulate(steady(50, lengths=((1.0, 20.0),), patience=0.0), fixed(10, 5), seconds=6_000, tick=0.2)
    assert report.served > 10_000
    assert report.waited() == pytest.approx(erlang_b(50, 50), rel=0.1)
    assert set(report.waits) == {0.0}


def test_lost_streams_do_not_depend_on_the_mixture_of_lengths() -> None:
    """Erlang's loss formula holds for any distribution of lengths (insensitivity)."""
    report = simulate(steady(50, lengths=MIXED, patience=0.0), fixed(50), seconds=6_000, tick=0.2, seed=1)
    assert report.waited() == pytest.approx(erlang_b(50, 50), rel=0.1)


def test_waiting_streams_are_erlangs() -> None:
    slots, load, length = 8, 5.6, 1.0
    report = simulate(steady(load, lengths=((1.0, length),)), fixed(slots), seconds=1_500, tick=0.01)
    assert report.gave_up == 0
    assert report.waited() == pytest.approx(erlang_c(slots, load), rel=0.15)
    assert report.mean_wait == pytest.approx(erlang_c(slots, load) * length / (slots - load), rel=0.2)
    assert report.stream_seconds / report.slot_seconds == pytest.approx(load / slots, rel=0.02)


def test_it_equals_a_simulation_that_follows_each_stream() -> None:
    simpy = pytest.importorskip("simpy", reason="needs the extra dev")
    slots, load = 20, steady(17.0, lengths=((0.7, 4.0), (0.3, 12.0)))
    environment, chance, waits = simpy.Environment(), random.Random(0), []
    places = simpy.Resource(environment, slots)

    def stream() -> Iterator[Any]:
        came = environment.now
        with places.request() as place:
            yield place
            waits.append(environment.now - came)
            mean = load.lengths[0][1] if chance.random() < load.lengths[0][0] else load.lengths[1][1]
            yield environment.timeout(chance.expovariate(1 / mean))

    def arrivals() -> Iterator[Any]:
        while True:
            yield environment.timeout(chance.expovariate(load.peak / load.mean_length))
            environment.process(stream())

    environment.process(arrivals())
    environment.run(2_000)
    report = simulate(load, fixed(slots), seconds=4_000, tick=0.1)
    assert report.waited() == pytest.approx(sum(wait > 0 for wait in waits) / len(waits), rel=0.25)
    assert report.waited(1.0) == pytest.approx(sum(wait > 1 for wait in waits) / len(waits), rel=0.35)


def test_a_day_has_its_peak_at_noon_and_the_arrivals_of_a_surge() -> None:
    load = Load(1_000, trough=0.2, surge=0.5, surge_at=6 * 3600, surge_seconds=600)
    rates = load.arrivals(np.array([0.0, 6 * 3600 - 1, 6 * 3600, 6 * 3600 + 600, 12 * 3600])) * load.mean_length
    assert rates == pytest.approx([200, 600, 1100, 617, 1000], rel=0.01)


def test_the_autoscaler_follows_the_day() -> None:
    fleet = Fleet(100, 4, 40, start_seconds=180)
    report = simulate(Load(2_000, patience=5.0), fleet, tick=5.0)
    assert math.ceil(2_000 / 70) <= report.most_devices <= 34
    assert 0.55 < report.stream_seconds / report.slot_seconds < 0.72
    assert report.gave_up == 0
    assert report.moved_by_scaling > 0


def test_devices_that_start_later_make_clients_wait_in_a_surge() -> None:
    load = Load(2_000, surge=1.0, surge_seconds=1_800)
    over = [
        simulate(load, Fleet(100, 4, 80, start_seconds=seconds), tick=5.0).waited(5.0) for seconds in (180, 600, 900)
    ]
    assert all(before < after for before, after in pairwise(over))
    assert over[0] == 0.0


def test_failures_move_the_streams_of_a_device() -> None:
    fleet = fixed(10, 10, failure_hours=1.0, restart_seconds=30)
    report = simulate(steady(50, lengths=((1.0, 100.0),)), fleet, seconds=20_000, tick=2.0)
    expected = 10 * 20_000 / 3600 * (1 - 30 / 3600)
    assert report.failures == pytest.approx(expected, rel=0.3)
    assert report.moved_by_failures / report.failures == pytest.approx(5, rel=0.2)  # half of ten slots


def test_every_stream_is_served_or_gives_up() -> None:
    """A fleet that is too small: what is served is what its slots can do."""
    load = steady(100, lengths=((1.0, 20.0),), patience=3.0)
    report = simulate(load, fixed(50), seconds=2_000, tick=0.5)
    arrived = report.served + report.gave_up
    assert arrived == pytest.approx(100 / 20 * 2_000, rel=0.05)
    assert report.served == pytest.approx(50 / 20 * 2_000, rel=0.05)
    assert max(report.waits) <= 3.0


def test_the_same_seed_gives_the_same_day() -> None:
    load, fleet = Load(200, patience=5.0), Fleet(10, 4, 40, failure_hours=10)
    assert simulate(load, fleet, tick=20.0, seed=3) == simulate(load, fleet, tick=20.0, seed=3)
    assert simulate(load, fleet, tick=20.0, seed=3) != simulate(load, fleet, tick=20.0, seed=4)


def test_streams_per_device_follow_from_the_steps() -> None:
    cost = StepCost(((1, 2.0), (64, 27.3), (128, 50.8)))
    assert cost.ms(1) == 2.0
    assert cost.ms(96) == pytest.approx(39.05)
    assert cost.ms(192) == pytest.approx(74.3)
    streams = cost.streams(60.0, memory=1_000)
    assert cost.ms(streams) <= 60.0 < cost.ms(streams + 1)
    assert cost.streams(60.0, memory=100) == 100
    assert cost.streams(1.0, memory=100) == 0


def test_percentiles_count_streams() -> None:
    report = Report(waits={0.0: 98, 2.0: 1, 7.0: 1}, gave_up=100)
    assert [report.percentile(share) for share in (0.5, 0.98, 0.99, 1.0)] == [0.0, 0.0, 2.0, 7.0]
    assert (report.waited(), report.waited(2.0)) == (0.51, 0.505)


def test_the_command_prints_a_row_per_load(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--steps", "1:2,64:27.3,128:50.8", "--streams", "100,1e3", "--tick", "60"])
    first, _, *rows = capsys.readouterr().out.splitlines()
    assert first == "153 streams per device: a step takes 60.0 of 80 ms"
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| 100", "| 1,000"]
    with pytest.raises(SystemExit, match="no stream fits"):
        main(["--steps", "1:200"])
