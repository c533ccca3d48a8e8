"""`--check`: rows as audio and drawings, two steps, and an estimate; the run's own folder gets nothing else."""

from __future__ import annotations

import json
import re
import wave
from pathlib import Path

import numpy as np
from tests.train import world
from tests.train.test_waves import pack, sampler  # noqa: F401

from slipstream.data.packs import Pack
from slipstream.model.text import Tokenizer
from slipstream.train.options import RunOptions
from slipstream.train.rehearsal import Rehearsal, draw, rehearse, write_rows


def test_rows_are_written_as_audio_and_drawings(pack: Pack, tmp_path: Path) -> None:  # noqa: F811
    write_rows(sampler(pack, tmp_path, {"chords": 1.0}), tmp_path / "check", 5)
    assert "text 6 frames (0.48 s) behind the audio" in (tmp_path / "check" / "row-5.svg").read_text(encoding="utf-8")
    names = sorted(path.name for path in (tmp_path / "check").iterdir())
    assert names == [f"row-{n}.{kind}" for n in (5, 6, 7) for kind in ("svg", "wav")]
    with wave.open(str(tmp_path / "check" / "row-5.wav")) as audio:
        assert (audio.getframerate(), audio.getnframes()) == (24_000, round(3.2 * 24_000))


def test_a_drawing_shows_the_words_at_their_frames_and_what_is_misread(tmp_path: Path) -> None:
    tokenizer = Tokenizer(world.tokenizer(tmp_path))
    one, two = tokenizer.encode("one")[0], tokenizer.encode("two")[0]
    text = np.array([3, 3, 0, one, 3, 3])
    seen = np.array([3, 3, 0, two, 3, 3])
    drawing = draw(tokenizer, "six frames", text, seen, None)
    at = dict(re.findall(r'<text x="(\d+)" y="1[13]\d" fill="[^"]+">([^<]+)<', drawing))
    assert at["32"] == "|"
    assert "48" in at
    assert drawing.count('fill="#c00"') == 1
    assert ">six frames</text>" in drawing


def test_two_steps_are_run_elsewhere_and_the_whole_run_is_estimated(tmp_path: Path) -> None:
    class Data:
        seconds = 4.0

        def model_copy(self, update: dict[str, object]) -> Data:
            assert update == {"valid": None}
            return self

    class Options:
        run = RunOptions(out=tmp_path / "run", steps=1800, rows=8)
        data = Data()

        def model_copy(self, update: dict[str, object]) -> RunOptions:
            tried = update["run"]
            assert isinstance(tried, Rehearsal)
            return tried

    def run(tried: Rehearsal) -> None:
        assert (tried.steps, tried.rows, tried.first_row) == (2, 8, 16)
        lines = [{"realtime": 1.0}, {"realtime": 16.0}]
        (tried.out / "log.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")

    report = rehearse(Options(), tmp_path / "check", 16, run)
    assert report.startswith("2 s per step, 1800 steps: 1.00 h; memory: ")
    assert not (tmp_path / "run").exists()
