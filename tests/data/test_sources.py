"""Recordings from tar shards and from the Hub: one after the other, with their audio and what is known of them."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import wave
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from slipstream.audio import load
from slipstream.data.manifest import ManifestError
from slipstream.data.sources import stream_recordings


def audio(level: int, seconds: float = 0.1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(24_000)
        out.writeframes(np.full(round(24_000 * seconds), level, "<i2").tobytes())
    return file.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    line = {"text": "One two.", "speaker": "s", "lang": "fr", "license": "CC0-1.0", "words": [["One", 0.0, 0.05]]}
    shard(tmp_path / "b.tar", {"x/2.wav": audio(3000), "x/2.txt": b"three\n"})
    shard(tmp_path / "a.tar", {"1.wav": audio(1000), "1.json": json.dumps(line).encode(), "2.wav": audio(2000)})
    read = [(one, float(load(one.audio)[1200])) for one in stream_recordings(str(tmp_path / "*.tar"))]
    assert [one.text for one, _ in read] == ["One two.", "", "three"]
    assert [round(level * 32768) for _, level in read] == [1000, 2000, 3000]
    first = read[0][0]
    assert (first.speaker, first.lang, first.extra["license"], len(first.words)) == ("s", "fr", "CC0-1.0", 1)
    assert not first.audio.exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.txt": b"a"}, r"a\.tar, sample 1: has \.txt; expected one of \.flac"),
        ({"1.wav": audio(1), "1.json": b"{"}, r"sample 1: its \.json or \.txt cannot be read"),
        ({"1.wav": audio(1), "1.json": b'{"seconds": "long"}'}, "sample 1: seconds must be a number"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", members)
    with pytest.raises(ManifestError, match=message):
        list(stream_recordings(str(tmp_path / "a.tar")))


def test_missing_and_broken_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="there is no such shard"):
        list(stream_recordings(str(tmp_path / "*.tar")))
    (tmp_path / "a.tar").write_text("no archive")
    with pytest.raises(ManifestError, match="cannot be read as a tar archive"):
        list(stream_recordings(str(tmp_path / "a.tar")))


def test_a_dataset_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"audio": {"bytes": audio(n), "path": f"{n}.wav"}, "sentence": f"text {n}", "locale": "de"} for n in (5, 6)]
    asked: list[object] = []

    class Rows(list):  # type: ignore[type-arg]
        def cast_column(self, name: str, kind: object) -> Rows:
            asked.append((name, kind))
            return self

    def load_dataset(*name: object, **how: object) -> Rows:
        asked.append((name, how))
        return Rows(rows)

    fake = SimpleNamespace(load_dataset=load_dataset, Audio=lambda decode: f"decode={decode}")
    monkeypatch.setitem(sys.modules, "datasets", fake)
    read = [(one.text, one.lang, round(float(load(one.audio)[9]) * 32768)) for one in stream_recordings("hf:a/b:de")]
    assert read == [("text 5", "de", 5), ("text 6", "de", 6)]
    assert asked == [(("a/b", "de"), {"split": "train", "streaming": True}), ("audio", "decode=False")]
