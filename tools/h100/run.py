"""Measure on a GPU machine, part by part: one process each, with its own time limit, one JSON line per row.

    . tools/h100/prefix.sh WHEELS
    python tools/h100/run.py facts check profile --out facts.jsonl
    python tools/h100/run.py goals --device cpu --small      # the same code, small, without a GPU

    facts    versions, bandwidth, what computes attention, which buckets are CUDA graphs
    check    attention compared with float64; the same tokens as on the CPU; what must not change a stream
    profile  the kernels that take the most time in a step of 64 streams
    tune     the attention kernel by block, warps, stages, splits, type and rows; PyTorch's kernels as rows
    steps    the time of a step by number of streams, with each format of keys and values
    peer     the same of the `moshi` package
    goals    1,200 and 800 streams, and one stream of the larger model
    sessions flushes, live sessions and arrivals
    train    decoded and synthesised speech, then training of the built-in model with batches of 64 and 128 rows

A part that fails or takes too long leaves the rows it had, and a row with the error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {
    "facts": 100,
    "check": 120,
    "profile": 100,
    "tune": 240,
    "steps": 240,
    "peer": 240,
    "goals": 120,
    "sessions": 200,
    "train": 540,
}
"""Seconds for each part."""


def main() -> int:
    options = parse()
    if options.child:
        sys.path.insert(0, str(ROOT))
        from tools.h100.parts import PARTS

        for row in PARTS[options.parts[0]](options):
            print(json.dumps(row), flush=True)
        return 0
    failed = False
    with options.out.open("a", encoding="utf-8") as out:
        for part in options.parts:
            rows = []
            for row in measure(part, options):
                rows.append(row)
                out.write(json.dumps({"part": part, **row}) + "\n")
                out.flush()
            failed |= any("error" in row or row.get("ok") is False for row in rows)
            print(table(part, rows), flush=True)
    return int(failed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=list(LIMITS), metavar="part", help=", ".join(LIMITS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small models and numbers, to try the code")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "speech", help="what tools.h100.speech wrote")
    parser.add_argument("--limit", type=float, help="seconds for each part, instead of its default limit")
    parser.add_argument("--out", type=Path, default=Path("h100.jsonl"), help="file to append rows to")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(part: str, options: argparse.Namespace) -> Any:
    """Run a part in a separate process, and yield its rows as they come."""
    command = [sys.executable, __file__, part, "--child", "--device", options.device, "--data", str(options.data)]
    command += ["--small"] * options.small
    limit, began = options.limit or LIMITS[part], time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    timer = threading.Timer(limit, process.kill)
    timer.start()
    for line in process.stdout:
        if line.startswith("{"):
            yield json.loads(line)
    code = process.wait()
    timer.cancel()
    reader.join(5)
    seconds = time.monotonic() - began
    if code != 0:
        reason = f"stopped after {limit:g} s" if seconds >= limit else "".join(errors[-3:]).strip()[-300:]
        yield {"error": reason}
    elif warnings := [line.strip() for line in errors if "kernels" in line or "CUDA graph" in line]:
        yield {"warnings": warnings[:5]}
    yield {"seconds": round(seconds, 1)}


def table(title: str, rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[shown(row.get(column)) for column in columns] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return f"\n## {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
