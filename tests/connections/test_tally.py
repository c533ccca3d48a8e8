"""Counts behind limits: those of several processes are those of one, as long as none of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.connections.tally import LocalTally, SharedTally
from slipstream.engine.remote.memory import create_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no worker processes")
NAMES = 8


def shared(rows: int) -> list[SharedTally]:
    file = create_file()
    os.ftruncate(file, SharedTally.size(rows, NAMES))
    return [SharedTally(file, rows, row, NAMES) for row in range(rows)]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abcd"), st.sampled_from("efg"), st.booleans()), max_size=60)
)
@settings(deadline=None, max_examples=50)
def test_shared_counts_equal_local_ones(calls: list[tuple[int, str, str, bool]]) -> None:
    local, rows = LocalTally(), shared(3)
    entered: list[list[tuple[str, str]]] = [[], [], []]
    for row, one, other, enters in calls:
        if enters:
            limits = [(one, 3), (other, 2)]
            full = local.enter(limits)
            assert rows[row].enter(limits) == full
            if full is None:
                entered[row].append((one, other))
        elif entered[row]:
            names = entered[row].pop()
            local.leave(*names)
            rows[row].leave(*names)


def test_names_come_and_go_without_limit() -> None:
    (tally,) = shared(1)
    for number in range(5 * NAMES):
        assert tally.enter([(f"address {number}", 1)]) is None
        assert tally.enter([(f"address {number}", 1)]) == (f"address {number}", 1)
        tally.leave(f"address {number}")


@pytest.mark.parametrize("tally", [LocalTally(), shared(1)[0]], ids=["local", "shared"])
def test_starts_in_a_minute(tally: LocalTally | SharedTally) -> None:
    assert [tally.start("desk", 2, now) for now in (100.0, 130.0)] == [0.0, 0.0]
    assert tally.start("desk", 2, 140.0) == pytest.approx(20.0)
    assert tally.start("phone", 2, 140.0) == 0.0
    assert tally.start("desk", 2, 160.5) == 0.0
    assert tally.start("desk", 2, 161.0) == pytest.approx(29.0)


def test_the_row_of_a_dead_process_is_cleared() -> None:
    one, other = shared(2)
    assert one.enter([("x", 2)]) is None
    assert other.enter([("x", 2)]) is None
    assert one.enter([("x", 2)]) == ("x", 2)
    one.clear(1)
    assert one.enter([("x", 2)]) is None


def test_the_lock_ends_with_its_process() -> None:
    file = create_file()
    os.ftruncate(file, SharedTally.size(1, NAMES))
    code = f"import fcntl, time; fcntl.lockf({file}, fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], pass_fds=[file], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.send_signal(signal.SIGKILL)
    assert SharedTally(file, 1, 0, NAMES).enter([("x", 1)]) is None
