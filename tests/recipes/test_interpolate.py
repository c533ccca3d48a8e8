"""The mean of two models."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from recipes.tiny.interpolate import main  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def test_the_encoder_and_the_rest_have_separate_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("first", 0.0), ("second", 1.0)):
        folder = tmp_path / name
        folder.mkdir()
        config = {"moshi_name": "model.safetensors", "mimi_name": f"{name}.safetensors", "of": name}
        (folder / "config.json").write_text(json.dumps(config))
        tensors = {"encoder.a": torch.full((2,), value), "b": torch.full((2,), value), "n": torch.tensor([int(value)])}
        save_file(tensors, folder / config["mimi_name"])
        for file in (config["moshi_name"], "training.safetensors"):
            save_file({"c": torch.full((2,), value)}, folder / file)
    folders = [str(tmp_path / name) for name in ("first", "second", "out")]
    monkeypatch.setattr(sys, "argv", ["interpolate.py", *folders, "--encoder", "0.25", "--rest", "0.75"])
    main()
    mixed = load_file(tmp_path / "out" / "second.safetensors")
    assert (mixed["encoder.a"].tolist(), mixed["b"].tolist(), mixed["n"].tolist()) == ([0.25] * 2, [0.75] * 2, [1])
    for file in ("model.safetensors", "training.safetensors"):
        assert load_file(tmp_path / "out" / file)["c"].tolist() == [0.75] * 2
    assert json.loads((tmp_path / "out" / "config.json").read_text())["of"] == "second"
