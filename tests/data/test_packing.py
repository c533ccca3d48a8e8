"""Packs are replaced as a whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slipstream.audio import SAMPLE_RATE
from slipstream.data.manifest import Recording
from slipstream.data.packing import sample_items
from slipstream.data.packs import Pack, write_pack
from slipstream.data.wave import write_wave
from slipstream.errors import CheckpointError, SlipstreamError


def test_a_pack_is_replaced_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    write_wave(tmp_path / "good.wav", np.zeros(SAMPLE_RATE, np.float32))
    recording = Recording(tmp_path / "good.wav", "good")
    missing = Recording(tmp_path / "missing.wav", "gone")
    pack = tmp_path / "pack"
    left_out: list[Recording] = []
    both = [recording, missing]
    assert write_pack(pack, *sample_items(both, on_error=lambda recording, _: left_out.append(recording))) == 1
    assert left_out == [missing]
    before = {path.name: path.read_bytes() for path in pack.iterdir()}
    assert sorted(before) == ["clips.jsonl", "pack.json", "rows.bin"]
    with pytest.raises(SlipstreamError, match=r"missing\.wav: no such file"):
        write_pack(pack, *sample_items(both))
    with pytest.raises(CheckpointError, match="a pack must have recordings"):
        write_pack(pack, *sample_items([]))
    assert {path.name: path.read_bytes() for path in pack.iterdir()} == before
    with pytest.raises(CheckpointError):
        write_pack(tmp_path / "fresh", *sample_items([]))
    assert not list((tmp_path / "fresh").iterdir())
    split_text = replace(recording, text="one\u2028two")
    assert write_pack(pack, *sample_items([split_text] * 2)) == 2
    assert [clip.text for clip in Pack(pack).clips] == ["one\u2028two"] * 2
