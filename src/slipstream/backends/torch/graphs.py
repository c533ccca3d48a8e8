"""A step as a CUDA graph: recorded once over fixed buffers, then launched by one call instead of thousands."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)

WARM_UP_STEPS = 3
"""Runs before the recording: libraries choose kernels and allocate workspaces in their first calls, which must not be
recorded."""


def capture(step: Callable[[], None], stream: torch.cuda.Stream, pool: Any) -> Callable[[], None] | None:
    """Record `step` on `stream`; gives what replays it, None when it cannot be recorded, which is logged.

    It is run before it is recorded, so it must be harmless then. `pool`: memory that graphs share which never run at
    the same time (`torch.cuda.graph_pool_handle()`). Raises `torch.OutOfMemoryError`: without a graph the step would
    need the same memory.
    """
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):
            step()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning("no CUDA graph, so every step will launch its kernels one by one: %s", error)
            return None
    return graph.replay
