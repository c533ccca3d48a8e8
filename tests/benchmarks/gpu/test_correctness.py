"""The comparison of tokens reports 1 for equal models, and less for a model that differs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from benchmarks.gpu.__main__ import parse  # noqa: E402
from benchmarks.gpu.bench import Bench  # noqa: E402
from benchmarks.gpu.correctness import correctness  # noqa: E402

ARGUMENTS = ["correctness", "--model", "small", "--device", "cpu", "--frames", "12"]


def test_equal_models_agree() -> None:
    rows = correctness(Bench(parse([*ARGUMENTS, "--dtype", "float32"])))
    assert [row["share"] for row in rows] == [1.0] * 5
    tokens = int(str(rows[0]["compared"]).split("the same of ")[1].split()[0])
    assert tokens > 3, "a model that repeats one token proves nothing"


def test_a_model_that_differs_is_noticed() -> None:
    bench = Bench(parse([*ARGUMENTS, "--dtype", "bfloat16"]))
    head = bench.lm.text_linear
    head.weight = torch.nn.Parameter(head.weight.flip(0), requires_grad=False)
    *others, lm = correctness(bench)
    assert lm["share"] < 0.5
    assert [row["share"] for row in others] == [1.0] * 4
