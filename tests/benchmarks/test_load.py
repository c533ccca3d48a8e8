"""The load generator: its processes on the cores that they are given."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from benchmarks.load import pin


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux keeps processes on cores")
def test_each_process_is_kept_on_its_core() -> None:
    core = min(os.sched_getaffinity(0))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        pin([process.pid], [core])
        assert os.sched_getaffinity(process.pid) == {core}
        process.communicate(b"\n")
    with pytest.raises(SystemExit, match="expected 2 cores"):
        pin([1, 2], [core])
