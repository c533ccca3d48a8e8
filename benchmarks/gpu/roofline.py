"""The parts of a step on their own, compared with the device's limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.common import Row, milliseconds
from benchmarks.gpu.bench import Bench, noise
from benchmarks.gpu.bounds import parts
from benchmarks.gpu.correctness import allow_tf32
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from slipstream.backends.torch.graphs import capture
from slipstream.nn.attention import chosen_sdpa
from slipstream.nn.ring import Ring
from slipstream.nn.state import State

ATTENTION_KERNELS = (
    SDPBackend.MATH,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
)


def roofline(bench: Bench) -> list[Row]:
    rows = []
    for streams in bench.options.sizes:
        bench.clear()
        bounds = parts(bench.config, streams, bench.best, bench.lm.text_linear.weight.element_size())
        runner, pcm_BS = bench.full_runner(streams, (streams,)), noise(streams, bench.config)
        active_B = np.ones(streams, np.bool_)
        whole = milliseconds(partial(runner.step, pcm_BS, active_B), bench.options.steps)
        del runner
        with torch.inference_mode(), allow_tf32(bench.options.tf32):
            measured = {name: part_ms(bench, run) for name, run in isolated(bench, streams)}
        total = 0.0
        for part in bounds:
            bound_ms = 1e3 * part.bound(bench.best)
            total += bound_ms
            rows.append(
                {
                    "streams": streams,
                    "part": part.name,
                    "gb": part.bytes / 1e9,
                    "gflop": part.flops / 1e9,
                    "bound_ms": bound_ms,
                    "measured_ms": measured[part.name],
                    "times_bound": measured[part.name] / bound_ms,
                }
            )
        step_ms = whole["median_ms"]
        rows.append({"streams": streams, "part": "the whole step", "bound_ms": total, "measured_ms": step_ms})
        rows[-1]["times_bound"] = step_ms / total
    return rows


def attention(bench: Bench) -> list[Row]:
    """Attention of one LM layer over full rings, one query per stream."""
    transformer, streams = bench.config.lm.transformer, bench.options.streams
    shape = streams, transformer.num_heads, transformer.context, transformer.head_dim
    rows: list[Row] = []
    bench.clear()
    with torch.inference_mode():
        k, v = (torch.randn(shape, device=bench.device, dtype=bench.dtype) for _ in range(2))
        q = torch.randn(*shape[:2], 1, shape[3], device=bench.device, dtype=bench.dtype)
        mask = torch.zeros(streams, 1, 1, transformer.context, device=bench.device, dtype=bench.dtype)
        bound_ms = 1e3 * 2 * k.numel() * k.element_size() / bench.best.bandwidth
        for kernel in ATTENTION_KERNELS:
            for masked in (mask, None):
                row: Row = {"kernel": kernel.name.lower(), "mask": masked is not None, "bound_ms": bound_ms}
                try:
                    with sdpa_kernel(kernel):
                        row["measured_ms"] = part_ms(bench, lambda m=masked: F.scaled_dot_product_attention(q, k, v, m))
                except RuntimeError as error:
                    row["refused"] = str(error).splitlines()[0][:60]
                else:
                    row["times_bound"] = row["measured_ms"] / bound_ms
                rows.append(row)
    return rows


def isolated(bench: Bench, streams: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each part of the step as a function, under the names in `bounds.parts`."""
    config, codec, lm = bench.config, bench.codec, bench.lm
    state = codec.encoder_state(streams)
    assert isinstance(state, dict)
    pcm_B1S = torch.randn(streams, 1, config.codec.frame_samples, device=bench.device)
    latent, _ = codec.encoder(pcm_B1S, state["encoder"])

    def convolutions() -> None:
        y, _ = codec.encoder(pcm_B1S, state["encoder"])
        if config.codec.stride > 1:
            codec.downsample(y, state["downsample"])

    yield "codec: convolutions", convolutions
    positions_T = latent.shape[-1]
    yield (
        "codec: Transformer products",
        lambda: multiply(codec.encoder_transformer, streams, positions_T, torch.float32),
    )
    yield "codec: attention", attend(codec.encoder_transformer, state["transformer"], streams, positions_T)
    frame_BD1 = torch.randn(streams, config.codec.dim, 1, device=bench.device)
    yield "codec: quantiser", lambda: codec.quantizer.encode(frame_BD1, config.lm.num_codebooks)
    yield "LM: products", lambda: multiply(lm.transformer, streams, 1, bench.dtype)
    yield "LM: attention", attend(lm.transformer, lm.init_state(streams), streams, 1)
    hidden = torch.randn(streams, 1, config.lm.transformer.dim, device=bench.device, dtype=bench.dtype)
    yield "LM: heads", lambda: lm.text_logits(hidden)


def multiply(transformer: nn.Module, streams: int, positions_T: int, dtype: torch.dtype) -> None:
    """Run every linear layer of a Transformer on its own input."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            shape = streams, positions_T, module.in_features
            module(torch.ones(shape, device=module.weight.device, dtype=dtype))


def attend(transformer: nn.Module, state: State, streams: int, positions_T: int) -> Callable[[], None]:
    """The attention of every layer over full rings."""
    assert isinstance(state, dict)
    ring = state["ring"]
    assert isinstance(ring, Ring)
    _, _, H, C, D = ring.k.shape
    q = torch.randn(streams, H, positions_T, D, device=ring.k.device, dtype=ring.k.dtype)
    mask = torch.zeros(streams, 1, positions_T, C, device=q.device, dtype=q.dtype)
    ring.k.normal_()
    ring.v.normal_()

    def run() -> None:
        with chosen_sdpa(q.device):
            for k, v in zip(ring.k, ring.v, strict=True):
                F.scaled_dot_product_attention(q, k, v, mask)

    return run


def part_ms(bench: Bench, run: Callable[[], object]) -> float:
    """Median milliseconds of a part. On CUDA it is a graph, as in the step."""
    if bench.device.type != "cuda":
        return float(milliseconds(run, min(bench.options.steps, 20))["median_ms"])
    stream = torch.cuda.Stream(bench.device)
    stream.wait_stream(torch.cuda.current_stream(bench.device))
    replay = capture(lambda: (run(), None)[1], stream, torch.cuda.graph_pool_handle(), "a part") or run
    times = []
    for _ in range(bench.options.steps):
        with torch.cuda.stream(stream):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            replay()
            end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return float(np.median(times))
