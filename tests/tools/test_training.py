"""Training on a GPU machine: the recipe's run with other data, small and on the CPU."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tools.h100 import speech, training

from slipstream.train.options import LMRun


def options(folder: Path, *, small: bool) -> argparse.Namespace:
    return argparse.Namespace(device="cpu", small=small, data=folder)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    speech.noise(4, tmp_path / "pack")
    return tmp_path / "pack"


@pytest.mark.parametrize("rows", [64, 128])
def test_the_recipe_with_other_data_is_a_run(tmp_path: Path, pack: Path, rows: int) -> None:
    run = LMRun.model_validate(training.configuration(options(tmp_path, small=False), [pack], rows, tmp_path))
    assert (run.run.rows, run.run.accumulate) == (rows, 1)
    assert run.run.workers > 0
    assert run.data.weights == {"noise": 1.0}
    assert run.model.init is None


def test_a_small_run_trains_and_prints_its_steps(
    tmp_path: Path, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = training.run(options(tmp_path, small=True), [pack], 2, tmp_path)
    steps = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert row["step"] == 4
    assert math.isfinite(row["loss"])


def test_texts_come_from_the_carried_files(tmp_path: Path) -> None:
    (tmp_path / speech.TEXTS).write_text("one two\n\nthree\n")
    assert training.texts_of(options(tmp_path, small=False)) == ["one two", "three"]
    assert len(training.texts_of(options(tmp_path / "none", small=True))) == 12
