"""How many devices a load needs, and how long its clients wait.

    python -m tools.fleet --steps 1:3.6,64:6.7,400:23.0,800:42.5,1200:61.9 --memory 1200
    python -m tools.fleet --steps 8:9.5,64:34 --streams 1000,10000 --start-seconds 600 --surge 0.5

`--steps` is the cost of a step, measured on your device: streams and milliseconds. `slipstream doctor`, `python -m
benchmarks.cpu streams` and `python -m benchmarks.gpu steps` measure it.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

from tools.fleet.queueing import slots_for
from tools.fleet.simulation import DAY, FRAME_MS, Fleet, Load, Report, StepCost, simulate


def main(words: list[str] | None = None) -> None:
    options = arguments().parse_args(words)
    cost = StepCost(options.steps)
    slots = options.slots or cost.streams(options.busy * FRAME_MS, options.memory)
    if not slots:
        raise SystemExit(f"no stream fits: a step of one stream takes {cost.ms(1):.1f} ms")
    print(f"{slots} streams per device: a step takes {cost.ms(slots):.1f} of {FRAME_MS:.0f} ms\n")
    rows = [row(streams, slots, options) for streams in options.streams]
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for one in rows:
        print("| " + " | ".join(one.values()) + " |")


def row(streams: int, slots: int, options: argparse.Namespace) -> dict[str, str]:
    """Simulate a day with this many concurrent streams at its peak."""
    lengths = tuple(options.lengths)
    load = Load(streams, options.trough, lengths, options.surge, patience=options.patience)
    least = max(options.least, math.ceil(streams * options.trough / (slots * options.target)))
    most = max(least + 1, math.ceil((1 + options.surge) * streams / (slots * options.target) * 1.2))
    fleet = Fleet(
        slots,
        least,
        most,
        options.target,
        start_seconds=options.start_seconds,
        failure_hours=options.failure_hours,
        restart_seconds=options.restart_seconds,
    )
    began = time.perf_counter()
    report = simulate(load, fleet, seconds=options.hours * 3600, tick=options.tick, seed=options.seed)
    needed = math.ceil(slots_for(load.peak, load.mean_length, 1.0, 0.01) / slots)
    return {
        "peak streams": f"{streams:,}",
        "devices, Erlang C": f"{needed:,}",
        "devices, most": f"{report.most_devices:,}",
        "device hours per day": f"{report.device_seconds / 3600 * DAY / (options.hours * 3600):,.0f}",
        "slots in use": f"{report.stream_seconds / report.slot_seconds:.0%}",
        **_waits(report),
        "moved by failures": f"{report.moved_by_failures / max(1, report.served):.2%}",
        "moved by scaling": f"{report.moved_by_scaling / max(1, report.served):.2%}",
        "simulated in": f"{time.perf_counter() - began:.0f} s",
    }


def _waits(report: Report) -> dict[str, str]:
    return {
        "streams that wait": f"{report.waited():.2%}",
        "wait over 1 s": f"{report.waited(1.0):.2%}",
        "99.9 % wait less than": f"{report.percentile(0.999):.0f} s",
        "give up": f"{report.gave_up / max(1, report.served + report.gave_up):.3%}",
    }


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.fleet", description="Simulate a day of a fleet.")
    add: Any = parser.add_argument
    add("--steps", type=_steps, required=True, help="streams:ms of measured steps, separated by commas")
    add("--memory", type=int, default=100_000, help="streams that fit into a device's memory")
    add("--busy", type=float, default=0.75, help="share of a frame that a step may take")
    add("--slots", type=int, help="streams per device, instead of calculating them")
    add("--streams", type=_numbers, default=[1_000, 10_000, 100_000, 1_000_000], help="concurrent streams at the peak")
    add("--trough", type=float, default=0.2, help="arrivals at the quietest time, as a share of the busiest")
    add("--lengths", type=_lengths, default=[(0.7, 60.0), (0.3, 860.0)], help="share:mean seconds of kinds of streams")
    add("--surge", type=float, default=0.0, help="further arrivals for 10 minutes at noon, as a share of the peak")
    add("--patience", type=float, default=5.0, help="seconds until a waiting stream gives up (--queue-seconds)")
    add("--target", type=float, default=0.7, help="share of slots in use that the autoscaler aims at")
    add("--least", type=int, default=2, help="devices at least")
    add("--start-seconds", type=float, default=180.0, help="from the decision for a device to its first stream")
    add("--failure-hours", type=float, default=720.0, help="mean time between failures of a device")
    add("--restart-seconds", type=float, default=60.0, help="from a failure to the device's next stream")
    add("--hours", type=float, default=24.0)
    add("--tick", type=float, default=1.0, help="seconds per step of the simulation")
    add("--seed", type=int, default=0)
    return parser


def _steps(text: str) -> tuple[tuple[int, float], ...]:
    return tuple((int(streams), float(ms)) for streams, ms in (pair.split(":") for pair in text.split(",")))


def _lengths(text: str) -> list[tuple[float, float]]:
    lengths = [(float(share), float(mean)) for share, mean in (pair.split(":") for pair in text.split(","))]
    if not math.isclose(sum(share for share, _ in lengths), 1.0):
        raise argparse.ArgumentTypeError("the shares must add up to 1")
    return lengths


def _numbers(text: str) -> list[int]:
    return [int(float(number)) for number in text.split(",")]


if __name__ == "__main__":
    main()
