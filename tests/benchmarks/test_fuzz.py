"""A live server withstands damaged inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.fuzz import TARGETS, fuzz_server


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_inputs_leave_a_live_server_whole(workers: int) -> None:
    assert fuzz_server(TARGETS, 5, seed=1, workers=workers) == 0
