"""The parts of `run.py`: each yields rows as soon as it has them."""

from __future__ import annotations

import argparse
import itertools
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from benchmarks.gpu.bench import noise
from benchmarks.gpu.exact import transformer
from benchmarks.gpu.traffic import arrivals, flush, live
from tools.h100.checks import check
from tools.h100.making import LARGE, Row, bench, models, on_device, timed
from tools.h100.training import train

from slipstream.nn import attention, fused
from slipstream.nn.layers import locate
from slipstream.nn.ring import Ring, RingFormat

# -------------------------------------------------------------------------------------------------------------- parts


def facts(options: argparse.Namespace) -> Iterator[Row]:
    device, cuda = torch.device(options.device), options.device.startswith("cuda")
    yield {"fact": "python, torch, numpy", "value": [platform.python_version(), torch.__version__, np.__version__]}
    yield {"fact": "kernels can run", "value": fused.available(device)}
    if cuda:
        properties = torch.cuda.get_device_properties(device)
        yield {"fact": properties.name, "value": f"{properties.total_memory / 1e9:.1f} GB"}
    size = 1 << (22 if options.small else 30)
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    yield {"fact": "copy, TB/s", "value": 2 * size / timed(lambda: target.copy_(source), device) / 1e9}
    side = 256 if options.small else 8192
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    yield {"fact": "bfloat16 product, TFLOP/s", "value": 2 * side**3 / timed(lambda: a @ a, device) / 1e9}
    for model, cache in itertools.product(models(options), ("auto", "int8")):
        runner = bench(options, model, "--kv-cache", cache).runner(4 if options.small else 64)
        graphs = {f"{b.size}{' gathered' if b.gathered else ''}": ok for b, ok in runner.captured.items()}
        yield {"fact": f"{model}, keys {cache}: attention", "value": str(runner.attention)}
        yield {"fact": f"{model}, keys {cache}: CUDA graphs", "value": str(graphs)}


def profile(options: argparse.Namespace) -> Iterator[Row]:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    sizes = [(model, 2 if options.small else 64) for model in models(options)]
    if not options.small:
        sizes.append((LARGE[0], 512))
    for model, streams in sizes:
        made = bench(options, model, "--kv-cache", "int8")
        runner, pcm_BS, active_B = (
            made.full_runner(streams, (streams,)),
            noise(streams, made.config),
            np.ones(streams, bool),
        )
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if made.device.type == "cuda" else [])]
        runner.step(pcm_BS, active_B)
        with record(activities=activities) as found:
            for _ in range(3):
                runner.step(pcm_BS, active_B)
        column = "self_device_time_total" if made.device.type == "cuda" else "self_cpu_time_total"
        events = sorted(found.key_averages(), key=lambda event: getattr(event, column), reverse=True)
        for event in events[:40]:
            yield {
                "model": model,
                "streams": streams,
                "kernel": event.key[:70],
                "calls": event.count // 3,
                "us": getattr(event, column) / 3,
            }


def tune(options: argparse.Namespace) -> Iterator[Row]:
    """Milliseconds of the attention of one layer, with full rings, and the share of the bandwidth that this is."""
    device, sizes = torch.device(options.device), (2,) if options.small else (64, 512)
    lm, codec = (transformer(128, 16, 30 if options.small else 750), transformer(64, 8, 30 if options.small else 250))
    kinds = (("int8", lm, 1), ("float32", codec, 2), ("bfloat16", lm, 1))
    for keys, config, step in kinds:
        dim, dtype = config.head_dim, torch.float32 if keys == "float32" else torch.bfloat16
        form = RingFormat(int8=keys == "int8", align=64, kernels=fused.available(device))
        for R in sizes:
            ring = Ring.empty((1, R, config.num_heads, config.context, dim), device=device, dtype=dtype, format=form)
            position_RT = torch.arange(step, device=device).repeat(R, 1) + 10_000
            about: Row = {"head": dim, "keys": keys, "queries": step, "rows": R}
            moved = sum(buffer.nbytes for buffer in ring.tensors)
            q = torch.randn(R, config.num_heads, step, dim, device=device, dtype=dtype)
            layer = ring.layer(0)
            with torch.inference_mode():
                if keys != "int8":
                    mask = locate(config, position_RT, ring.capacity, dtype).mask
                    yield from tune_pytorch(q, layer, mask, about, moved)
                if fused.available(device):
                    yield from tune_kernel(q, layer, position_RT, config.context, about, moved)


def tune_pytorch(q: torch.Tensor, layer: Any, mask: torch.Tensor, about: Row, moved: int) -> Iterator[Row]:
    for backend in attention.SDPA_PRIORITY:
        row = about | {"kernel": backend.name}
        run = partial(torch.nn.functional.scaled_dot_product_attention, q, layer.k, layer.v, mask)
        try:
            with torch.nn.attention.sdpa_kernel([backend]):
                yield row | rate(run, moved, q.device)
        except RuntimeError as error:
            yield row | {"note": str(error)[:80]}


def tune_kernel(
    q: torch.Tensor, layer: Any, position_RT: torch.Tensor, context: int, about: Row, moved: int
) -> Iterator[Row]:
    from slipstream.nn import kernels

    R, H, _, _ = q.shape
    several = (1, 2) if R * H <= kernels.PROGRAMS else (1,)
    depths = (2, 3, 4) if layer.format.int8 else (kernels.STAGES,)
    for columns, warps, stages, splits in itertools.product((32, 64), (2, 4, 8), depths, several):
        settings = {"columns": columns, "warps": warps, "stages": stages, "splits": splits}
        run = partial(kernels.attend, q, layer, position_RT, context, **settings)
        try:
            yield about | {"kernel": "triton", **settings} | rate(run, moved, q.device)
        except Exception as error:  # shared memory may be too small for a combination
            yield about | {"kernel": "triton", **settings, "note": str(error)[:80]}


def rate(run: Callable[[], object], moved: int, device: torch.device) -> Row:
    ms = on_device(run, device)
    return {"ms": ms, "TB/s": moved / ms / 1e9}


def steps(options: argparse.Namespace, package: str = "slipstream") -> Iterator[Row]:
    sizes = (1, 2) if options.small else (1, 64, 256, 400, 512, 800, 1200)
    settings = [("--kv-cache", "int8"), ("--kv-cache", "auto"), ("--kv-cache", "int8", "--tf32")]
    if package == "moshi":
        settings = [()]
    for model, more in itertools.product(models(options), settings):
        made = bench(options, model, *more)
        make = dict(made.contenders())[package]
        for streams in sizes:
            made.clear()
            row: Row = {"package": package, "model": model, "settings": " ".join(more), "streams": streams}
            try:
                row |= latency(make(streams), made.options.steps, made.config.codec.frame_rate)
            except torch.OutOfMemoryError:
                yield row | {"note": "out of memory"}
                break
            yield row | {"memory_gb": made.memory()}


def latency(step: Callable[[], object], count: int, frame_rate: float) -> Row:
    """The field's usual columns: mean and percentiles in milliseconds, and how often real time."""
    times = []
    for _ in range(5 + count):
        began = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - began))
    p50, p90, p95, p99 = np.percentile(times[5:], (50, 90, 95, 99)).tolist()
    mean = float(np.mean(times[5:]))
    return {"avg": mean, "p50": p50, "p90": p90, "p95": p95, "p99": p99, "x real time": 1e3 / frame_rate / mean}


def peer(options: argparse.Namespace) -> Iterator[Row]:
    yield from steps(options, "moshi")


def goals(options: argparse.Namespace) -> Iterator[Row]:
    targets = [(LARGE[0], 3)] if options.small else [(LARGE[0], 1200), (LARGE[1], 800)]
    for model, streams in targets:
        made = bench(options, model, "--kv-cache", "int8")
        row = latency(dict(made.contenders())["slipstream"](streams), made.options.steps, made.config.codec.frame_rate)
        yield {"goal": "p99 below 80 ms", "model": model, "streams": streams, **row}
        del made
    made = bench(options, LARGE[1], "--weights", "none")
    row = latency(dict(made.contenders())["slipstream"](1), made.options.steps, made.config.codec.frame_rate)
    yield {"goal": "one stream in 3 ms", "model": LARGE[1], "streams": 1, **row}


def sessions(options: argparse.Namespace) -> Iterator[Row]:
    """Streams on the engine, in real time, with everything that the host does for them."""
    seconds, load = ("1", "2") if options.small else ("20", "1000")
    more = ("--kv-cache", "int8", "--no-peer", "--seconds", seconds, "--streams", load, "--load", "0.9")
    made = bench(options, LARGE[0], *more)
    made.options.busy = [2] if options.small else [64, 512]
    for part in (flush, live, arrivals):
        for found in part(made):
            yield {"part": part.__name__, "model": LARGE[0], **found}


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    part.__name__: part for part in (facts, check, profile, tune, steps, peer, goals, sessions, train)
}
