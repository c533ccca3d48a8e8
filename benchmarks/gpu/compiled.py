"""The attention kernel's machine code, compiled without a GPU: registers, shared memory, and bytes on their way.

    PYTHONPATH=.venv/triton:src:. python -m benchmarks.gpu.compiled

By Little's law, the bandwidth that a multiprocessor can use is at most its bytes on the way divided by the latency of
memory. The share is that of `BANDWIDTH` for all multiprocessors; it leaves out the arithmetic in between.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from benchmarks.common import Row, table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from slipstream.nn import kernels

MULTIPROCESSORS, REGISTERS, SHARED_BYTES, WARPS = 132, 65536, 227 * 1024, 64
"""Of an H100 SXM, the last three per multiprocessor."""
BANDWIDTH, LATENCY = 3.0e12, 0.8e-6
"""Bytes per second of a copy, and seconds until loaded bytes arrive under load."""

TYPES = {"f32": "fp32", "bf16": "bf16", "int8": "i8"}


def compile_kernel(
    kernel: Any, capability: int, pointers: dict[str, str], constants: dict[str, object], warps: int
) -> Any:
    """Compile for one shape; every pointer is a multiple of 16 bytes, as torch allocates them."""
    names = kernel.arg_names
    signature = {name: pointers.get(name, "constexpr") for name in names}
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    constexprs |= {(i,): None for i, name in enumerate(names) if name not in pointers and name not in constants}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if pointers.get(name, "").startswith("*")
    }
    source = ASTSource(kernel, signature, constexprs, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def spills(compiled: Any) -> tuple[int, int]:
    """Bytes of local memory and registers of each thread, from the machine code."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return int(usage["STACK"]) + int(usage["LOCAL"]), int(usage["REG"])


def attend(capability: int, kind: str, dim: int, step: int, splits: int) -> Any:
    """Compile the attention kernel for one type, head and number of queries."""
    form = TYPES[kind]
    wide = "fp32" if kind == "f32" else "bf16"
    scales = {"k_scale": "*fp32", "v_scale": "*fp32"} if kind == "int8" else {}
    return compile_kernel(
        kernels.attend_kernel,
        capability,
        {"q": f"*{wide}", "k": f"*{form}", "v": f"*{form}", **scales, "slots": "*i64", "positions": "*i64"}
        | {"out": f"*{wide}", "partial": "*fp32", "weights": "*fp32", "scale": "fp32"},
        {"H": 16, "T": step, "C": 768, "D": dim, "CONTEXT": 750, "N": kernels.COLUMNS, "SPLITS": splits}
        | {"STAGES": kernels.STAGES, "INT8": kind == "int8"},
        kernels.WARPS,
    )


def main() -> None:
    rows: list[Row] = []
    for kind, dim, step in (("int8", 128, 1), ("int8", 64, 1), ("bf16", 128, 1), ("bf16", 64, 1), ("f32", 64, 2)):
        compiled = attend(90, kind, dim, step, 1)
        stack, registers = spills(compiled)
        shared = compiled.metadata.shared
        threads = 32 * kernels.WARPS
        by_shared = SHARED_BYTES // max(1, shared + 1024)  # a program reserves 1 KB
        programs = min(REGISTERS // (registers * threads), WARPS // kernels.WARPS, by_shared)
        number = {"f32": 4, "bf16": 2, "int8": 1}[kind]
        on_the_way = programs * (kernels.STAGES - 1) * 2 * kernels.COLUMNS * dim * number
        share = min(1.0, MULTIPROCESSORS * on_the_way / LATENCY / BANDWIDTH)
        useful = dim * number / (dim * number + (4 if kind == "int8" else 0))
        rows.append(
            {
                "keys": kind,
                "head": dim,
                "queries": step,
                "registers": registers,
                "spilled": stack,
                "shared KB": shared / 1024,
            }
            | {
                "programs": programs,
                "KB on the way": on_the_way / 1024,
                "share of bandwidth": share,
                "not scales": useful,
            }
        )
    print(table(rows))


if __name__ == "__main__":
    main()
