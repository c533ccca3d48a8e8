"""A short run of benchmarks/crashes.py: streams get all their words over killed processes, and nothing is left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks import crashes

pytestmark = pytest.mark.skipif(not Path("/dev/shm").exists(), reason="reads /proc and /dev/shm")


def test_streams_get_all_their_words_over_killed_processes() -> None:
    report = asyncio.run(crashes.run(crashes=3, streams=8, workers=2, between=1.0, pace=4.0, seed=49))
    assert report.crashes == {"worker": 1, "engine": 1, "parent": 1}
    assert report.streams >= 8
    assert report.connections > report.streams
    assert report.wrong_transcripts == 0
    assert (report.left, report.leaked_slots, report.leaked_files) == (0, 0, 0)
