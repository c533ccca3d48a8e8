"""A short run of the abuse in benchmarks/chaos.py: nothing leaks, and honest neighbours notice nothing."""

from __future__ import annotations

from benchmarks import chaos


def test_abuse_leaks_nothing_and_affects_no_other_stream() -> None:
    report = chaos.run(sessions=60, seconds=2.0, seed=1)
    assert len(report.abuses) == len(chaos.ABUSES)
    assert report.honest_streams >= 10
    assert report.wrong_transcripts == 0
    assert report.leaked_slots == 0
