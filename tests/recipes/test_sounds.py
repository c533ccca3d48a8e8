"""Sounds without words: files, lengths and random draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recipes.tiny import sounds

from slipstream.audio import load
from slipstream.data.manifest import read_manifest, write_manifest


def test_sounds_are_written_without_text(tmp_path: Path) -> None:
    made = list(sounds.make_sounds(tmp_path, 0.02, ("en", "fr"), seed=3))
    write_manifest(tmp_path / "manifest.jsonl", made)
    read = list(read_manifest(tmp_path / "manifest.jsonl"))
    assert [r.text for r in read] == [""] * len(made)
    assert sum(r.seconds or 0 for r in read) >= 72
    assert {r.lang for r in read} == {"en", "fr"}
    assert {r.speaker for r in read} >= {"music", "drums", "hum"}
    for recording in read:
        assert len(load(recording.audio)) == pytest.approx((recording.seconds or 0) * 24_000, abs=1)


@pytest.mark.parametrize("kind", [sounds.music, sounds.drums, sounds.hum, sounds.tones, sounds.noise])
def test_every_kind_has_sound_and_depends_on_its_seed(kind: sounds.Kind) -> None:
    first, again, other = (kind(48_000, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (48_000,)
    assert np.isfinite(first).all()
    assert np.sqrt(np.mean(first**2)) == pytest.approx(1, abs=0.01)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
