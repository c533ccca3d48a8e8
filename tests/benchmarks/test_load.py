"""The load generator: its processes on the cores that they are given."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest
from benchmarks.dialects import CLIENTS
from benchmarks.load import dialect_costs, known_dialects, pin


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux keeps processes on cores")
def test_each_process_is_kept_on_its_core() -> None:
    core = min(os.sched_getaffinity(0))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        pin([process.pid], [core])
        assert os.sched_getaffinity(process.pid) == {core}
        process.communicate(b"\n")
    with pytest.raises(SystemExit, match="expected 2 cores"):
        pin([1, 2], [core])


def test_the_dialects_of_an_option_are_known() -> None:
    assert known_dialects("all") == list(CLIENTS)
    assert known_dialects("vosk,plain") == ["vosk", "plain"]
    with pytest.raises(argparse.ArgumentTypeError, match="unknown dialect smtp: choose from all, plain, "):
        known_dialects("plain,smtp")


@pytest.mark.parametrize("name", CLIENTS)
def test_what_a_dialect_costs_alone_is_measured(name: str) -> None:
    own, plain = dialect_costs(CLIENTS[name], 3)
    assert own > 0
    assert plain > 0
