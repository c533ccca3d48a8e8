"""Packs are replaced as a whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models import codec_config, noise_and_tones, whisper_codec_config

from slipstream.audio import SAMPLE_RATE, load
from slipstream.data.manifest import Recording
from slipstream.data.packing import sample_items, token_items
from slipstream.data.packs import Pack, write_pack
from slipstream.data.wave import write_wave
from slipstream.errors import CheckpointError, SlipstreamError
from slipstream.model.config import CodecConfig
from slipstream.nn.mimi import Mimi


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


@pytest.mark.parametrize("config", [codec_config(), whisper_codec_config(), whisper_codec_config(lookahead=2)])
def test_tokens_hold_the_end_of_a_recording(config: CodecConfig, tmp_path: Path) -> None:
    """The encoder may be late: 0, 3 and 1.5 frames."""
    codec = Mimi(config).eval()
    samples = noise_and_tones(0.5)
    write_wave(tmp_path / "a.wav", samples)
    _, items = token_items([Recording(tmp_path / "a.wav", "a")], codec)
    ((tokens, _),) = items
    with torch.inference_mode():
        codes, _ = codec.encode(torch.from_numpy(np.pad(load(tmp_path / "a.wav", SAMPLE_RATE), (0, SAMPLE_RATE)))[None])
    frames = 7 + config.blank_frames
    assert tokens.tolist() == codes[0].T[:frames].tolist()
