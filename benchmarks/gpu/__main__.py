"""Concurrent streams on one GPU, compared with the `moshi` package in the same run.

    python -m benchmarks.gpu steps --model kyutai/stt-1b-en_fr --sizes 1,8,64,256,512
    python -m benchmarks.gpu capacity arrivals --model kyutai/stt-2.6b-en --seconds 60
    python -m benchmarks.gpu correctness --device cpu --model small

    steps        time of a step, from samples on the host to tokens on the host, by number of streams; memory
    capacity     largest number of streams whose 99th percentile is below --limit-ms
    arrivals     steps while streams start and end at random, --seconds of audio as fast as steps run
    live         engine sessions in real time for --seconds, starting and ending at random
    flush        time from the end of speech to the last word, with --busy other streams
    correctness  tokens of float32 on the device against the CPU, of bfloat16 and TF32 against float32
    roofline     each part of the step: bytes, operations, time compared with the device's limits
    attention    attention over the rings in torch's kernels, compared with the time to read the rings

The weights are random: times do not depend on them. Every ring is full: each stream is past its context. In `live` and
`flush` the model does all its work, and its text is replaced by a script. Writes gpu.json and gpu.md into --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from benchmarks.common import Row, numbers, table
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.capacity import capacity
from benchmarks.gpu.correctness import correctness
from benchmarks.gpu.roofline import attention, roofline
from benchmarks.gpu.steps import steps
from benchmarks.gpu.traffic import arrivals, flush, live

from slipstream.checkpoints.presets import PRESETS

PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    part.__name__: part for part in (steps, capacity, arrivals, live, flush, correctness, roofline, attention)
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.manual_seed(0)
    bench = Bench(options)
    report: Row = {"about": bench.about, "options": vars(options) | {"out": str(options.out)}}
    for name in options.parts:
        print(f"{name} ...", flush=True)
        report[name] = PARTS[name](bench)
        print(table(report[name]), flush=True)
        # After each part: a later one that fails must not cost the earlier ones.
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.out / "gpu.md").write_text(markdown(report))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=list(PARTS), metavar="part", help=", ".join(PARTS))
    parser.add_argument("--model", choices=[*PRESETS, "small"], default="kyutai/stt-1b-en_fr")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of the LM")
    parser.add_argument("--tf32", action="store_true", help="round to TF32 in our codec, as torch does in moshi's")
    parser.add_argument("--kv-cache", choices=["auto", "int8"], default="auto", help="format of keys and values")
    parser.add_argument("--weights", choices=["none", "int8", "fp8"], default="none", help="format of LM weights")
    parser.add_argument("--no-kernels", dest="kernels", action="store_false", help="attention in PyTorch")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="leave out the moshi package")
    parser.add_argument("--sizes", type=numbers, default=[1, 8, 64, 256, 512], help="of steps and roofline: streams")
    parser.add_argument("--steps", type=int, default=200, help="timed steps for each number of streams")
    parser.add_argument("--limit-ms", type=float, default=80.0, help="of capacity: for the 99th percentile")
    parser.add_argument("--grain", type=int, default=16, help="of capacity: resolution in streams")
    parser.add_argument("--most", type=int, default=4096, help="of capacity: upper limit of streams")
    parser.add_argument("--streams", type=int, default=256, help="of arrivals, live and attention")
    parser.add_argument("--load", type=float, default=0.8, help="of arrivals and live: share of slots in use")
    parser.add_argument("--session-seconds", type=float, default=60.0, help="of arrivals and live: mean length")
    parser.add_argument("--seconds", type=float, default=120.0, help="of arrivals, live and flush")
    parser.add_argument("--busy", type=numbers, default=[64, 512], help="of flush: numbers of streams")
    parser.add_argument("--frames", type=int, default=50, help="of correctness: frames")
    parser.add_argument("--bandwidth", type=float, default=3.35e12, help="bytes per second of an H100 SXM")
    parser.add_argument("--lm-rate", type=float, default=989e12, help="operations per second in the LM's type")
    parser.add_argument("--codec-rate", type=float, default=67e12, help="the same in float32; with --tf32 494e12")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    return parser.parse_args(arguments)


def markdown(report: Row) -> str:
    options = report["options"]
    about = ", ".join(f"{key} {value}" for key, value in report["about"].items())
    sections = [f"# {options['model']}, {options['dtype']}\n\n{about}\n"]
    sections += [f"## {name}\n\n{table(report[name])}\n" for name in PARTS if name in report]
    return "\n".join(sections)


if __name__ == "__main__":
    main()
