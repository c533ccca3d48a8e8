"""The invariants hold for a runner, and one that breaks one is noticed."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from benchmarks.gpu.__main__ import parse  # noqa: E402
from benchmarks.gpu.bench import Bench  # noqa: E402
from benchmarks.gpu.invariants import ROUNDS_OTHERWISE, invariants  # noqa: E402

from slipstream.backends.torch.runner import TorchRunner  # noqa: E402
from slipstream.nn.ring import RingFormat  # noqa: E402

ARGUMENTS = ["correctness", "--model", "small", "--device", "cpu", "--dtype", "float32", "--frames", "9"]


def differences() -> dict[str, float]:
    rows = invariants(Bench(parse(ARGUMENTS)), RingFormat())
    return {row["invariant"]: row["largest difference"] for row in rows}


def test_a_runner_keeps_streams_apart() -> None:
    found = differences()
    assert all(found[name] <= (1e-4 if name in ROUNDS_OTHERWISE else 0) for name in found)


def test_a_savepoint_that_does_not_restore_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    restore = TorchRunner.restore

    def restored(runner: TorchRunner, slot: int, state: object) -> None:
        if not hasattr(state, "entry"):
            restore(runner, slot, state)  # type: ignore[arg-type]

    monkeypatch.setattr(TorchRunner, "restore", restored)
    found = differences()
    assert found.pop("silence, then back to a savepoint") > 1e-3
    assert all(found[name] <= (1e-4 if name in ROUNDS_OTHERWISE else 0) for name in found)
