"""An encoder that learns several lookaheads: each step draws one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train import world

from slipstream.data.augment import RowNoise, WaveAugment
from slipstream.data.packs import Clip, Pack, PackKind, write_pack
from slipstream.data.waves import WaveSampler
from slipstream.model.config import STTConfig, WhisperConfig
from slipstream.model.text import Tokenizer
from slipstream.train.joint import WhisperJointTask
from slipstream.train.model import SpeechModel
from slipstream.train.options import LossOptions, QuantiserOptions

WHISPER = WhisperConfig(n_mels=80, dim=32, num_heads=2, num_layers=2, ffn_dim=64, context=20, lookahead=4)


@pytest.fixture
def rows(tmp_path: Path) -> WaveSampler:
    noise = np.random.default_rng(0).integers(-3000, 3000, (24000, 1)).astype(np.int16)
    clip = Clip(0, 0, "one", "en", "noise", "s", (("one", 0.2, 0.6),))
    write_pack(tmp_path / "pack", PackKind("samples", 1, 24000.0, (0.0,)), [(noise, clip)])
    clean, quiet = WaveAugment(reverb=0, noise=0, telephone=0, clip=0, gain=0), RowNoise(0.0, (5, 30))
    tokenizer = Tokenizer(world.tokenizer(tmp_path))
    options = world.rows(3.2, {"noise": 1.0})
    return WaveSampler([Pack(tmp_path / "pack")], tokenizer, options, effects=clean, noise=quiet, speed=1.0)


@pytest.mark.parametrize("lookaheads", [(), (0, 40)])
def test_each_step_draws_a_lookahead(
    rows: WaveSampler, lookaheads: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    base = world.config()
    codec = base.codec.model_copy(update={"mel": None, "whisper": WHISPER})
    model = SpeechModel(STTConfig(codec=codec, lm=base.lm, delay_seconds=0.48, delay_frames=6), 3)
    task = WhisperJointTask(model, rows, LossOptions(), QuantiserOptions(start=0), True, lookaheads=lookaheads)
    encoder, seen = model.codec.encoder, []
    hidden = encoder.hidden

    def record(*given: torch.Tensor, lookahead: int | None = None, **options: torch.Tensor) -> list[torch.Tensor]:
        seen.append(lookahead)
        return hidden(*given, lookahead=lookahead, **options)

    monkeypatch.setattr(encoder, "hidden", record)
    for step in range(12):
        task.loss(rows.batch(0, 1), step, 0.0)
    assert set(seen) == set(lookaheads or [None])
