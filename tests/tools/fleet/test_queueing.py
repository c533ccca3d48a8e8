"""Erlang's formulas against their definitions and published values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools.fleet.queueing import erlang_b, erlang_c, slots_for, wait_over


@given(st.integers(1, 60), st.floats(0.1, 80.0))
def test_erlang_b_is_the_last_state_of_the_loss_system(slots: int, load: float) -> None:
    weights = [load**n / math.factorial(n) for n in range(slots + 1)]
    assert erlang_b(slots, load) == pytest.approx(weights[-1] / sum(weights))


@given(st.integers(1, 60), st.floats(0.05, 0.98))
def test_erlang_c_is_the_sum_of_the_waiting_states(slots: int, share: float) -> None:
    load = share * slots
    free = sum(load**n / math.factorial(n) for n in range(slots))
    waiting = load**slots / math.factorial(slots) / (1 - share)
    assert erlang_c(slots, load) == pytest.approx(waiting / (free + waiting))


def test_values_of_the_tables() -> None:
    assert erlang_b(10, 4.461) == pytest.approx(0.01, abs=2e-5)  # 1 % of Erlang's table for ten circuits
    assert erlang_b(100, 84.06) == pytest.approx(0.01, abs=2e-5)
    assert erlang_c(1, 0.7) == pytest.approx(0.7)  # M/M/1


def test_an_unstable_queue_makes_all_wait() -> None:
    assert erlang_c(4, 4.0) == wait_over(4, 5.0, 60.0, 10.0) == 1.0


@given(st.floats(0.5, 2_000.0), st.floats(0.0, 30.0), st.sampled_from([0.5, 0.1, 0.01]))
def test_slots_for_is_the_smallest_number(load: float, seconds: float, share: float) -> None:
    slots = slots_for(load, 300.0, seconds, share)
    assert wait_over(slots, load, 300.0, seconds) <= share
    assert wait_over(slots - 1, load, 300.0, seconds) > share or slots == math.ceil(load)


def test_large_fleets_need_fewer_spare_slots() -> None:
    spare = [slots_for(load, 300.0, 1.0, 0.01) / load - 1 for load in (10, 1_000, 100_000)]
    assert spare == sorted(spare, reverse=True)
    assert spare[-1] < 0.01
