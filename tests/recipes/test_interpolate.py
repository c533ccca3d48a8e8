"""The mean of two models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from recipes.tiny.interpolate import main  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def test_the_encoder_and_the_rest_have_separate_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("first", 0.0), ("second", 1.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
        tensors = {"encoder.a": torch.full((2,), value), "b": torch.full((2,), value), "n": torch.tensor([int(value)])}
        save_file(tensors, tmp_path / name / "mimi.safetensors")
    folders = [str(tmp_path / name) for name in ("first", "second", "out")]
    monkeypatch.setattr(sys, "argv", ["interpolate.py", *folders, "--encoder", "0.25", "--rest", "0.75"])
    main()
    mixed = load_file(tmp_path / "out" / "mimi.safetensors")
    assert (mixed["encoder.a"].tolist(), mixed["b"].tolist(), mixed["n"].tolist()) == ([0.25] * 2, [0.75] * 2, [1])
    assert (tmp_path / "out" / "config.json").read_text() == "second"
