"""Trackers get every number of a run, and are named by their own names or by an import."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slipstream.errors import BackendError, ConfigError
from slipstream.train.trackers import Log, find_tracker


class Recorded:
    """A custom tracker."""

    opened: tuple[Path, Mapping[str, Any]]
    written: list[tuple[int, dict[str, float]]]

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        Recorded.opened, Recorded.written, self.closed = (folder, settings), [], False

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self.written.append((step, dict(numbers)))

    def close(self) -> None:
        self.written.append((-1, {}))


def test_a_custom_tracker_gets_the_numbers(tmp_path: Path) -> None:
    said: list[str] = []
    with Log(tmp_path, [f"{__name__}:Recorded"], {"rows": 4}) as log:
        log.write(3, 60.0, {"loss": 0.5}, said.append)
    assert Recorded.opened == (tmp_path, {"rows": 4})
    assert Recorded.written == [(3, {"loss": 0.5}), (-1, {})]
    assert json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8")) == {"step": 3, "elapsed": 60.0, "loss": 0.5}
    assert said == ["   1.0 min  step 3  loss 0.5"]


def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with Log(tmp_path, ["tensorboard"]) as log:
        log.write(1, 0.0, {"loss": 1.0}, lambda line: None)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_weights_and_biases_resumes_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def init(**given: Any) -> SimpleNamespace:
        calls.append(given)
        return SimpleNamespace(
            id="abc", log=lambda n, step: calls.append((step, n)), finish=lambda: calls.append("end")
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for _ in range(2):
        with Log(tmp_path, ["wandb"], {"rows": 4}) as log:
            log.write(2, 0.0, {"loss": 1.0}, lambda line: None)
    first, written, end, second, *_ = calls
    assert (first["id"], second["id"]) == (None, "abc")
    assert first["config"] == {"rows": 4}
    assert (written, end) == ((2, {"loss": 1.0}), "end")


def test_mlflow_resumes_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def start_run(run_id: str | None, run_name: str | None) -> SimpleNamespace:
        calls.append(run_id)
        return SimpleNamespace(info=SimpleNamespace(run_id="xyz"))

    fake = SimpleNamespace(
        start_run=start_run,
        log_params=calls.append,
        log_metrics=lambda numbers, step: calls.append((step, numbers)),
        end_run=lambda: calls.append("end"),
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    for _ in range(2):
        with Log(tmp_path, ["mlflow"], {"rows": 4}) as log:
            log.write(2, 0.0, {"loss": 1.0}, lambda line: None)
    assert calls == [None, {"rows": "4"}, (2, {"loss": 1.0}), "end", "xyz", (2, {"loss": 1.0}), "end"]


def test_unknown_and_missing_trackers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'aim' is none of tensorboard, wandb, mlflow"):
        find_tracker("aim")
    with pytest.raises(ConfigError, match="no_such_module:X cannot be imported"):
        find_tracker("no_such_module:X")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BackendError, match=r"pip install 'slipstream-stt\[wandb\]'"):
        Log(tmp_path, ["wandb"])
