from __future__ import annotations

import os
import time

import numpy as np
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
