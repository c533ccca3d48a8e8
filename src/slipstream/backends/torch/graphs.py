"""A step as a CUDA graph: recorded once over fixed buffers, then launched with one call instead of thousands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

logger = logging.getLogger(__name__)

WARM_UP_STEPS = 3
"""Runs before the recording: libraries choose kernels and allocate workspaces in their first calls, which must not be
recorded."""


def capture(step: Callable[[], None], stream: torch.cuda.Stream, pool: Any, name: str) -> Callable[[], None] | None:
    """Record `step` on `stream`.

    Args:
        step: Runs before it is recorded, so it must not change anything then.
        stream: The CUDA stream.
        pool: Memory for graphs that never run at the same time, from `torch.cuda.graph_pool_handle()`.
        name: What is recorded, for the log.

    Returns:
        A function that replays the graph, or None if the step cannot be recorded. The reason is logged.

    Raises:
        torch.OutOfMemoryError: There is not enough memory. Without a graph the step would need the same.
    """
    # The warm-up is in the `try`, too: a step that fails in it can still run without a graph in another configuration.
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(stream), _fastest_convolutions():
            for _ in range(WARM_UP_STEPS):
                step()
            stream.synchronize()
            # In the default mode, CUDA refuses calls of every thread that could disturb a recording, such as
            # allocations. Other runners of the process may be at work: the first recording that is transcribed opens a
            # model's runner for recordings while its live streams run.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        logger.warning("%s: no CUDA graph, each step launches its kernels one by one: %s", name, error)
        return None
    return graph.replay


@contextmanager
def _fastest_convolutions() -> Iterator[None]:
    """Let cuDNN time its kernels in the warm-up; the recording takes the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
