"""Streams that start and end at random."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.gpu.__main__ import parse  # noqa: E402
from benchmarks.gpu.bench import Bench  # noqa: E402
from benchmarks.gpu.traffic import Arrivals, live, step_through  # noqa: E402


def test_the_load_stays_and_sessions_have_the_mean_length() -> None:
    occupancy = Arrivals(slots=200, load=0.5, session_seconds=2.0)
    active, starts = [], 0
    for new in islice(occupancy, 2000):
        active.append(int(occupancy.active_B.sum()))
        starts += len(new)
    assert np.mean(active) == pytest.approx(100, rel=0.1)
    assert 0.08 * sum(active) / starts == pytest.approx(2.0, rel=0.1)


def test_a_new_stream_gets_the_lowest_free_slot() -> None:
    occupancy = Arrivals(slots=50, load=0.5, session_seconds=1.0)
    for new in islice(occupancy, 200):
        free_before = ~occupancy.active_B
        free_before[new] = True
        assert new == np.flatnonzero(free_before)[: len(new)].tolist()


def test_a_slot_is_reset_before_a_new_stream_steps() -> None:
    used = np.zeros(8, bool)
    log: list[int] = []

    def reset(slots: list[int]) -> None:
        log.extend(slots)
        used[slots] = False

    def step(pcm_BS: np.ndarray, active_B: np.ndarray) -> None:
        nonlocal used
        used &= active_B  # a slot that paused must be reset
        fresh = active_B & ~used
        assert not log or set(np.flatnonzero(fresh)) == set(log)
        log.clear()
        used = active_B.copy()

    config = SimpleNamespace(codec=SimpleNamespace(frame_samples=1920))
    options = SimpleNamespace(seconds=20.0, load=0.5, session_seconds=1.0)
    row = step_through(SimpleNamespace(slots=8, reset=reset, step=step), config, options)  # type: ignore[arg-type]
    assert 0 < row["active"] < 8


def test_live_sessions_end_with_their_last_word() -> None:
    arguments = ["live", "--model", "small", "--device", "cpu", "--dtype", "float32", "--streams", "8"]
    (row,) = live(Bench(parse([*arguments, "--seconds", "2", "--session-seconds", "0.5"])))
    assert 0 < row["sessions"] <= 8
    assert row["ends"] > 0
    assert 0 < row["end_to_last_word_median_ms"] <= row["end_to_last_word_p99_ms"]
