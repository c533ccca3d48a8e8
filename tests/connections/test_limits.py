"""Pace: a token bucket with its own clock."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from slipstream.connections.limits import Limits, Pace


def test_a_burst_then_the_rate() -> None:
    pace = Pace(10, now=0.0)
    assert [pace.delay(0.0) for _ in range(10)] == [0.0] * 10
    assert pace.delay(0.0) == 0.1
    assert pace.delay(10.0) == 0.0  # rest fills it again, to one second's worth
    assert [pace.delay(10.0) for _ in range(10)][-1] == 0.1


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=300), st.floats(1, 1000))
def test_no_schedule_gets_more_than_the_rate(gaps: list[float], rate: float) -> None:
    pace, now, events = Pace(rate, now=0.0), 0.0, 0
    for gap in gaps:
        now += gap
        now += pace.delay(now)
        events += 1
    assert events <= rate + rate * now + 1


def test_the_server_page_names_every_limit() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "server.md").read_text(encoding="utf-8")
    assert [field.name for field in fields(Limits) if f"`{field.name}`" not in page] == []
