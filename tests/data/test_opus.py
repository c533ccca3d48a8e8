"""Packs of Opus hold what packs of samples hold, in less space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.train import world

from slipstream.data.opus import decode_opus, encode_opus
from slipstream.data.packs import Clip, Pack, PackKind, write_pack

SAMPLES = [np.round(samples * 32767).astype(np.int16)[:, None] for samples, _ in world.utterances(2)]


def test_a_pack_of_opus_has_the_same_recordings(tmp_path: Path) -> None:
    kind = PackKind("samples", 1, 24_000.0, (0.0,))
    for name, opus in (("plain", False), ("opus", True)):
        items = [(rows, Clip(0, 0, f"text {n}", "en", "a", "s")) for n, rows in enumerate(SAMPLES)]
        write_pack(tmp_path / name, kind, items, opus=opus)
    plain, coded = Pack(tmp_path / "plain"), Pack(tmp_path / "opus")
    assert plain.kind == coded.kind
    for a, b in zip(plain.clips, coded.clips, strict=True):
        left, right = plain.rows(a)[:, 0], coded.rows(b)[:, 0]
        assert left.shape == right.shape
        assert right.dtype == np.float32
        assert np.corrcoef(left, right)[0, 1] > 0.9
    assert coded.samples().shape == plain.samples().shape
    small, large = ((tmp_path / name / "rows.bin").stat().st_size for name in ("opus", "plain"))
    assert small < large / 6


@pytest.mark.parametrize("length", [1, 100, 24_001])
def test_a_recording_of_any_length_keeps_its_length(length: int) -> None:
    samples = np.zeros(length, np.int16)
    assert decode_opus(encode_opus(samples, 24_000), 24_000, length).shape == (length,)
