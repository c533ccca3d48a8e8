"""Recordings by many readers: which clips and texts the manifest has."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from recipes.tiny.readers import HELD_READERS, MOST_CLIPS, MOST_CLIPS_HELD, MOST_OF_RELEASE, main

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
    table, outside = voices / "cv-valid-dev.csv", voices.parent / "other.csv"
    table.write_text("filename,text\ncv-valid-dev/a.wav,so do i\ncv-valid-dev/short.wav,no\n", encoding="utf-8")
    outside.write_text("filename,text\ncv-valid-dev/a.wav,so did i\n", encoding="utf-8")
    for reader, clips in (("10", MOST_CLIPS + 2), ("20", 1)):
        names = [f"{reader}-7-{number:04}" for number in range(clips)]
        lines = "".join(f"{name} I SEE\n" for name in names)
        (chapters[reader] / f"{reader}-7.trans.txt").write_text(lines, encoding="utf-8")
        for name in names:
            write_wave(chapters[reader] / f"{name}.flac", second, 8000)
    out = tmp_path / "readers.jsonl"
    command = ["readers.py", str(out), "--common-voice", str(table), str(outside), "--librispeech", str(books)]
    monkeypatch.setattr(sys, "argv", command)
    main()
    rows = list(read_manifest(out))
    assert Counter((row.dataset, row.speaker, row.text) for row in rows) == {
        ("common-voice-1", "", "So do I."): 1,
        ("common-voice-1", "", "So did I."): 1,
        ("librispeech-more", "10", "I see."): MOST_CLIPS,
        ("librispeech-more", "20", "I see."): 1,
    }


def test_a_release_of_common_voice_has_few_clips_each_and_holds_out_readers_with_few_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "release"
    (folder / "validated_clips").mkdir(parents=True)
    counts = {"many": MOST_OF_RELEASE + 1, "some": MOST_CLIPS_HELD + 1}
    counts |= {f"few-{number}": 2 for number in range(HELD_READERS["fr"] + 1)}
    lines = ["client_id\tpath\tsentence\tlocale", 'gone\tgone.mp3\t"Où ?\tfr']
    for reader, clips in counts.items():
        for number in range(clips):
            name = f"{reader}-{number}.wav"
            write_wave(folder / "validated_clips" / name, np.zeros(2 * 8000, np.float32), 8000)
            lines.append(f"{reader}\t{name}\tC\u2019est « {number} ».\tfr")
    (folder / "validated.tsv").write_text("\n".join(lines), encoding="utf-8")
    out, held = tmp_path / "voices.jsonl", tmp_path / "held.jsonl"
    monkeypatch.setattr(sys, "argv", ["readers.py", str(out), "--releases", str(folder), "--held", str(held)])
    main()
    rows, tests = list(read_manifest(out)), list(read_manifest(held))
    assert len({test.speaker for test in tests}) == len(tests) == HELD_READERS["fr"]
    (left,) = {row.speaker for row in rows} - {"many", "some"}
    assert Counter(row.speaker for row in rows) == {"many": MOST_OF_RELEASE, "some": counts["some"], left: 2}
    assert {row.speaker for row in rows}.isdisjoint(test.speaker for test in tests)
    assert {(row.dataset, row.lang, row.text) for row in tests} == {
        ("common-voice-fr", "fr", f"C'est {number} .") for number in (0, 1)
    }
