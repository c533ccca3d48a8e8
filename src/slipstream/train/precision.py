"""The type that a run computes in: that of its device's fastest products of matrices, or the one it began with."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

from slipstream.train.options import RunOptions
from slipstream.train.parallel import from_first, is_first
from slipstream.train.saved import CHECKPOINT_FILE, read_saved

ROWS, INPUTS, OUTPUTS = 256, 512, 512
"""Of the product that is timed: 0.13 GFLOP, about a millisecond."""
TURNS = 6


@cache
def fastest(device: str) -> tuple[torch.dtype, str]:
    """The type in which a device multiplies matrices fastest, and why.

    bfloat16 on accelerators and on CPUs with AMX, float32 on CPUs that emulate bfloat16: a product of 384 x 384 takes
    25 times as long on AVX2. CPUs with AVX-512 BF16 alone differ: bfloat16 takes a quarter of the time on AMD's Zen 4
    and twice the time on some of Intel's. There both are timed, once per process.

    Example:
        >>> fastest("cuda")
        (torch.bfloat16, 'on cuda')
    """
    if (kind := torch.device(device).type) != "cpu":
        return torch.bfloat16, f"on {kind}"
    if torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "this CPU has AMX"
    if not torch.cpu._is_avx512_bf16_supported():
        return torch.float32, "this CPU has neither AMX nor AVX-512 BF16"
    full, half = product_seconds(torch.float32), product_seconds(torch.bfloat16)
    times = f"a product takes {1e3 * full:.2g} ms in float32, {1e3 * half:.2g} ms in bfloat16"
    return (torch.bfloat16 if half < full else torch.float32), times


def product_seconds(dtype: torch.dtype) -> float:
    """The shortest CPU time of a few products of matrices in `dtype`; the first one is not counted.

    By one thread's own clock, which stops while other work has its core. On a busy machine, the time on the wall is
    that of the other work, too.
    """
    a, b = torch.ones(ROWS, INPUTS, dtype=dtype), torch.ones(INPUTS, OUTPUTS, dtype=dtype)
    threads, seconds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for _ in range(TURNS):
        start = time.thread_time()
        a @ b
        seconds.append(time.thread_time() - start)
    torch.set_num_threads(threads)
    return min(seconds[1:])


def agreed(device: str) -> torch.dtype:
    """The `fastest` type of the first process's device: processes with different types would not be one run."""
    return _from_first(fastest(device)[0] if is_first() else torch.float32, device)


def settled(options: RunOptions, report: Callable[[str], None]) -> RunOptions:
    """The options with a type instead of `dtype = "auto"`, the same in all processes.

    A run that resumes keeps the type that its checkpoint records. `report` gets a line with the type, and why.
    """
    if options.dtype != "auto":
        return options
    dtype, why, path = torch.float32, "", options.out / CHECKPOINT_FILE
    if is_first():
        before = read_saved(path).get("dtype") if path.exists() else None
        dtype, why = fastest(options.device) if before is None else (getattr(torch, before), f"as in {path}")
        report(f'run.dtype = "auto": {name_of(dtype)} ({why})')
    return options.model_copy(update={"dtype": name_of(_from_first(dtype, options.device))})


def name_of(dtype: torch.dtype) -> str:
    """The name of a type in options and checkpoints: `float32` or `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def _from_first(dtype: torch.dtype, device: str) -> torch.dtype:
    return torch.bfloat16 if from_first(dtype == torch.bfloat16, device) else torch.float32
