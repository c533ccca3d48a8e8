"""Recordings by many readers: which clips and texts the manifest has."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from recipes.tiny.readers import MOST_CLIPS, main

from slipstream.data.manifest import read_manifest
from slipstream.data.wave import write_wave


def test_readers_have_few_clips_each_and_texts_become_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voices, books = tmp_path / "corpus" / "cv-valid-dev", tmp_path / "books"
    chapters = {reader: books / "part" / reader / "7" for reader in ("10", "20")}
    for folder in (voices, *chapters.values()):
        folder.mkdir(parents=True)
    second = np.zeros(2 * 8000, np.float32)
    write_wave(voices / "a.wav", second, 8000)
    write_wave(voices / "short.wav", second[:4000], 8000)
    table = voices / "cv-valid-dev.csv"
    table.write_text("filename,text\ncv-valid-dev/a.wav,so do i\ncv-valid-dev/short.wav,no\n", encoding="utf-8")
    for reader, clips in (("10", MOST_CLIPS + 2), ("20", 1)):
        names = [f"{reader}-7-{number:04}" for number in range(clips)]
        lines = "".join(f"{name} I SEE\n" for name in names)
        (chapters[reader] / f"{reader}-7.trans.txt").write_text(lines, encoding="utf-8")
        for name in names:
            write_wave(chapters[reader] / f"{name}.flac", second, 8000)
    out = tmp_path / "readers.jsonl"
    command = ["readers.py", str(out), "--common-voice", str(table), "--librispeech", str(books)]
    monkeypatch.setattr(sys, "argv", command)
    main()
    rows = list(read_manifest(out))
    assert Counter((row.dataset, row.speaker, row.text) for row in rows) == {
        ("common-voice-1", "", "So do I."): 1,
        ("librispeech-more", "10", "I see."): MOST_CLIPS,
        ("librispeech-more", "20", "I see."): 1,
    }
