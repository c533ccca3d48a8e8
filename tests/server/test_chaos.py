"""Short runs of benchmarks/chaos.py and chaos_speech.py: nothing leaks, and honest neighbours notice nothing."""

from __future__ import annotations

from benchmarks import chaos, chaos_speech


def test_abuse_leaks_no_resources_and_affects_no_other_stream() -> None:
    report = chaos.run(sessions=60, seconds=2.0, seed=1)
    assert len(report.abuses) == len(chaos.ABUSES)
    assert report.honest_streams >= 10
    assert report.wrong_transcripts == 0
    assert report.leaked_slots == 0


def test_abuse_of_a_server_with_workers_leaks_no_resources_and_affects_no_other_stream() -> None:
    report = chaos.run(sessions=60, seconds=2.0, seed=1, workers=2)
    assert len(report.abuses) == len(chaos.ABUSES)
    assert report.honest_streams >= chaos.HONEST_AT_ONCE
    assert report.wrong_transcripts == 0
    assert report.leaked_slots == 0


def test_abuse_of_text_to_speech_leaks_no_resources_and_changes_no_other_text() -> None:
    report = chaos_speech.run(sessions=40, seconds=1.0, seed=1)
    assert len(report.abuses) == len(chaos_speech.ABUSES)
    assert report.honest_streams >= 4
    assert report.wrong_transcripts == 0
    assert report.leaked_slots == 0
