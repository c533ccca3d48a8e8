from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from tests.models import random_model, stt_config

from slipstream.backends.onnx.inference import physical_cores
from slipstream.backends.onnx.runner import OnnxRunner


def test_cores_are_counted_once_and_only_those_this_process_may_use():
    assert physical_cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        try:
            assert physical_cores() == 1
        finally:
            os.sched_setaffinity(0, allowed)


def test_a_waiting_runner_sleeps():
    config = stt_config()
    runner = OnnxRunner(config, *random_model(config), threads=2)
    runner.step(np.zeros((1, 1920), np.float32), np.array([True]))
    start = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - start < 0.1


@pytest.mark.parametrize(
    ("limit", "cores"), [("100000 100000", 1), ("1000 100000", 1), ("max 100000", None), ("", None)]
)
def test_a_limit_of_the_control_group_counts(tmp_path: Path, limit: str, cores: int | None) -> None:
    (tmp_path / "own").write_text("0::/a/b\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "cpu.max").write_text(f"{limit}\n")
    without = physical_cores(tmp_path / "none", tmp_path)
    assert physical_cores(tmp_path / "own", tmp_path) == (cores or without)
