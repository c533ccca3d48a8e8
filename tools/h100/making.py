"""What the parts share: models with random weights, and times on the device."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from benchmarks.common import milliseconds
from benchmarks.gpu.__main__ import parse
from benchmarks.gpu.bench import Bench

Row = dict[str, Any]
LARGE = ("kyutai/stt-1b-en_fr", "kyutai/stt-2.6b-en")


def bench(options: argparse.Namespace, model: str = LARGE[0], *more: str, parts: Sequence[str] = ("steps",)) -> Bench:
    """A model for the benchmarks; `--small` is the same code with another model and few steps."""
    arguments = [*parts, "--model", "small" if options.small else model, "--device", options.device]
    arguments += ["--steps", "3" if options.small else "100", *more]
    if options.small:
        arguments += ["--dtype", "float32"]
    torch.manual_seed(0)
    return Bench(parse(arguments))


def models(options: argparse.Namespace) -> Sequence[str]:
    return LARGE[:1] if options.small else LARGE


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], object], device: torch.device, times: int = 20) -> float:
    """Median milliseconds."""

    def once() -> None:
        run()
        synchronise(device)

    return float(milliseconds(once, times)["median_ms"])


def on_device(run: Callable[[], object], device: torch.device, times: int = 10) -> float:
    """Median milliseconds of a run among several in a row, so that the host's launches take no part."""
    if device.type != "cuda":
        return timed(run, device)
    found = []
    run()
    for _ in range(3):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        for _ in range(times):
            run()
        ended.record()
        ended.synchronize()
        found.append(began.elapsed_time(ended) / times)
    return sorted(found)[1]
