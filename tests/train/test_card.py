"""A model's card lists what it was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slipstream.data.packs import Clip, Pack, PackKind, write_pack
from slipstream.train.card import write_card


def test_the_card_has_hours_languages_and_licences(tmp_path: Path) -> None:
    clips = [
        Clip(0, 0, "one", "en", "a", "s", licence="CC0-1.0"),
        Clip(0, 0, "deux", "fr", "a", "t"),
        Clip(0, 0, "three", "en", "unused", "s", licence="CC-BY-NC-4.0"),
    ]
    rows = np.zeros((8000 * 36, 1), np.int16)
    write_pack(tmp_path / "pack", PackKind("samples", 1, 8000.0, (0.0,)), ((rows, clip) for clip in clips))
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    write_card(folder, [Pack(tmp_path / "pack")], {"a": 2.0}, "tiny")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "# run" in card
    assert "language: [en, fr]" in card
    assert "| a | 0.02 | 2 | 2 | en, fr | CC0-1.0, not stated | 100% |" in card
    assert "continues from `tiny`" in card
    assert "NC" not in card
