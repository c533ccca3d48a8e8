"""The part `check`: what the device computes, compared with float64, with the CPU, and with itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from benchmarks.gpu.bench import Bench, noise
from benchmarks.gpu.correctness import correctness, share, tokens
from benchmarks.gpu.exact import attention_error, transformer
from benchmarks.gpu.invariants import ROUNDS_OTHERWISE, invariants
from tools.h100.making import LARGE, Row, bench

from slipstream.backends.torch.runner import TorchRunner
from slipstream.nn import fused
from slipstream.nn.ring import RingFormat

INT8 = RingFormat(int8=True)
FORMATS: tuple[tuple[torch.dtype, RingFormat, float], ...] = (
    (torch.float32, RingFormat(), 2e-6),
    (torch.bfloat16, RingFormat(), 1e-2),
    (torch.bfloat16, INT8, 2e-2),
    (torch.bfloat16, RingFormat(int8=True, hadamard=True), 2e-2),
)
"""Type, format of the ring, and the largest relative error; the CPU has about a third of each."""


def check(options: argparse.Namespace) -> Iterator[Row]:
    yield from against_float64(options)
    made = bench(options, LARGE[0], "--frames", "9" if options.small else "30", parts=("correctness",))
    for row in correctness(made):
        yield row | {"ok": row["share"] == 1.0 if row["compared"].startswith("float32") else None}
    yield rounded_to_8_bits(made)
    for rings in (RingFormat(), INT8):
        for row in invariants(made, rings):
            # Another row or batch may be summed in another order, and int8 then rounds a few numbers the other way.
            rounds = row["invariant"] in ROUNDS_OTHERWISE
            yield row | {"ok": row["largest difference"] <= (0.02 if rings.int8 else 1e-4) * rounds}


def against_float64(options: argparse.Namespace) -> Iterator[Row]:
    """The attention of both packages' shapes, by the kernels where they run, and by PyTorch."""
    device, heads = torch.device(options.device), 2 if options.small else 16
    contexts = (30,) if options.small else (375, 750)
    for dim, step in ((128, 1), (64, 1), (64, 2)):
        for context in contexts:
            for dtype, rings, limit in FORMATS:
                for kernels in (True, False):
                    if kernels and not fused.available(device):
                        continue
                    config = transformer(dim, heads, context)
                    error = attention_error(config, rings, device, dtype, step, kernels=kernels)
                    form = "int8, Hadamard" if rings.hadamard else "int8" if rings.int8 else str(dtype)[6:]
                    yield {
                        "compared": f"attention in {'the kernels' if kernels else 'PyTorch'} and float64",
                        "keys": form,
                        "head": dim,
                        "queries": step,
                        "context": context,
                        "relative error": error,
                        "ok": error < limit,
                    }


def rounded_to_8_bits(made: Bench) -> Row:
    """How many tokens of a random model stay the same with int8 keys and values."""
    audio_TBS = noise(4 * made.options.frames, made.config).reshape(made.options.frames, 4, -1)
    plain, rounded = (
        tokens(TorchRunner(made.config, made.codec, made.lm_f32, slots=4, rings=rings), audio_TBS, range(4))
        for rings in (RingFormat(), INT8)
    )
    same = share(plain, rounded)
    return {"compared": "int8 keys and float32: the same tokens of random weights", "share": same}
