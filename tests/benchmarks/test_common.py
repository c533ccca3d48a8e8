"""The helpers that benchmarks share."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest
from benchmarks.common import FreeRunner, milliseconds, moshi_lm_arguments, race, resident_bytes, summary, table

from slipstream.checkpoints.presets import PRESETS
from slipstream.model.config import WORD_ID


def test_a_race_alternates_every_five_steps_and_ignores_the_first_five() -> None:
    calls: list[str] = []
    ours, theirs = race(lambda: calls.append("a"), lambda: calls.append("b"), steps=10)
    assert "".join(calls) == 3 * ("aaaaa" + "bbbbb")
    assert (len(ours), len(theirs)) == (10, 10)


def test_the_warm_up_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    durations = iter([9.0] * 5 + [0.001, 0.003, 0.002])

    def step() -> None:
        nonlocal now
        now += next(durations)

    monkeypatch.setattr("time.perf_counter", lambda: now)
    row = milliseconds(step, 3)
    assert row["median_ms"] == pytest.approx(2)
    assert row["worst_ms"] == pytest.approx(3)


def test_a_summary_has_the_99th_percentile() -> None:
    row = summary([number / 1000 for number in range(1, 102)])
    assert (row["median_ms"], row["p99_ms"], row["worst_ms"]) == pytest.approx((51, 100, 101))


def test_a_table_has_a_column_for_every_key() -> None:
    assert table([{"a": 1, "b": 2.0}, {"b": None, "c": "x"}]).splitlines() == [
        "| a | b | c |",
        "| --- | --- | --- |",
        "| 1 | 2 |  |",
        "|  |  | x |",
    ]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_resident_memory_counts_written_pages() -> None:
    block = mmap.mmap(-1, 50_000_000)  # pages that no earlier test has used
    before = resident_bytes()
    block.write(bytes([1]) * len(block))
    assert resident_bytes() - before > 40_000_000
    assert resident_bytes(os.getpid()) > len(block)


def test_the_arguments_of_the_moshi_package_have_no_file_names() -> None:
    arguments = moshi_lm_arguments(PRESETS["kyutai/stt-1b-en_fr"])
    assert arguments["n_q"] == 32
    assert not [key for key in arguments if key.endswith("_name") or key.endswith("_config")]


def test_the_free_runner_writes_words_and_restores_its_position() -> None:
    runner, pcm_BS = FreeRunner(2), np.zeros((2, 1920), np.float32)
    first = [runner.step(pcm_BS, np.array([True, False])).token_B.copy() for _ in range(20)]
    assert WORD_ID in {tokens[0] for tokens in first}
    saved = runner.snapshot(0)
    following = runner.step(pcm_BS, np.array([True, True])).token_B[0]
    runner.restore(0, saved)
    assert runner.step(pcm_BS, np.array([True, True])).token_B[0] == following
