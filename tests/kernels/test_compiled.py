"""The kernels, compiled ahead of time for an H100 and an A100, without a GPU: no spills, and wide loads."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton", reason="triton is not installed: `make kernels` installs it")

from slipstream.nn import fused

if fused.INTERPRETED:
    pytest.skip("the interpreter replaces the compiler in this process", allow_module_level=True)

from benchmarks.gpu.compiled import TYPES, attend, compile_kernel, spills

from slipstream.nn import kernels

CASES = [("int8", 128, 1, 1), ("int8", 64, 1, 16), ("bf16", 128, 1, 4), ("bf16", 64, 1, 1), ("f32", 64, 2, 1)]


@pytest.mark.parametrize("capability", [90, 80])
@pytest.mark.parametrize(("kind", "dim", "step", "splits"), CASES)
def test_attention_does_not_spill_and_reads_16_bytes_at_a_time(
    capability: int, kind: str, dim: int, step: int, splits: int
):
    compiled = attend(capability, kind, dim, step, splits)
    stack, registers = spills(compiled)
    assert stack == 0
    assert registers <= 255
    ptx = compiled.asm["ptx"]
    # The pipelined loop copies keys and values through shared memory; 16 bytes are the widest copy.
    assert re.search(r"cp\.async\.cg\.shared\.global.* 0x10|ld\.global\.v4\.b32", ptx)


@pytest.mark.parametrize("capability", [90, 80])
@pytest.mark.parametrize(
    ("kind", "dim", "step", "hadamard"),
    [("int8", 128, 1, True), ("int8", 64, 1, False), ("bf16", 128, 1, False), ("f32", 64, 2, False)],
)
def test_append_does_not_spill(capability: int, kind: str, dim: int, step: int, hadamard: bool):
    form, wide = TYPES[kind], "fp32" if kind == "f32" else "bf16"
    scales = {"k_scale": "*fp32", "v_scale": "*fp32"} if kind == "int8" else {}
    compiled = compile_kernel(
        kernels.append_kernel,
        capability,
        {"qkv": f"*{wide}", "rotation": "*fp32", "slots": "*i64", "positions": "*i64", "signs": "*fp32"}
        | {"k": f"*{form}", "v": f"*{form}", **scales, "q_out": f"*{wide}"},
        {"H": 16, "T": step, "C": 768, "P": dim // 2, "LOG": dim.bit_length() - 1}
        | {"INT8": kind == "int8", "HADAMARD": hadamard},
        1,
    )
    assert spills(compiled)[0] == 0


@pytest.mark.parametrize("capability", [90, 80])
@pytest.mark.parametrize(
    ("kernel", "pointers", "constants"),
    [
        ("combine_kernel", {"partial": "*fp32", "weights": "*fp32", "out": "*bf16"}, {"D": 128, "SPLITS": 16}),
        (
            "rms_norm_kernel",
            {"x": "*bf16", "weight": "*fp32", "out": "*bf16", "eps": "fp32"},
            {"D": 2048, "BLOCK": 2048},
        ),
        ("silu_multiply_kernel", {"x": "*bf16", "out": "*bf16", "count": "i32"}, {"F": 5632, "BLOCK": 1024}),
        (
            "elu_after_kernel",
            {"state": "*fp32", "x": "*fp32", "out": "*fp32", "count": "i32"},
            {"K": 4, "S": 1920, "BLOCK": 1024},
        ),
    ],
)
def test_elementwise_kernels_do_not_spill(
    kernel: str, pointers: dict[str, str], constants: dict[str, object], capability: int
):
    assert spills(compile_kernel(getattr(kernels, kernel), capability, pointers, constants, 4))[0] == 0
