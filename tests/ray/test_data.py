"""Ray Data on this machine: files, bad files, a lost actor, and a second run that does the rest."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("ray.data", reason="needs the extra ray: make ray")
from benchmarks.ray_serve import ray_processes

import ray
import slipstream.ray
from slipstream.errors import ConfigError
from slipstream.ray.data import JsonLines, ParquetFolder, save, schema

SAMPLE = Path(__file__).parents[2] / "examples" / "sample.opus"
ROW = {"id": "a", "text": "b", "words": [], "turns": [], "duration": 1.0, "model": "m", "delay": 0.5, "error": ""}


def files(folder: Path, count: int) -> list[Path]:
    """Copies of the sample, and a file that is not audio."""
    paths = [folder / f"{number}.opus" for number in range(count)]
    for path in paths:
        shutil.copy(SAMPLE, path)
    (folder / "bad.mp3").write_text("not audio")
    return [*paths, folder / "bad.mp3"]


def test_a_killed_actor_loses_no_file(cluster, tmp_path) -> None:
    paths = files(tmp_path, 6)
    output = tmp_path / "out.jsonl"
    reports: list[tuple[int, int]] = []

    def kill_later() -> None:
        while not (pids := ray_processes("ray::MapWorker(MapBatches(Actor")):
            time.sleep(0.05)
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_later)
    killer.start()
    options = {"slots": 4, "backend": "onnx"}
    skipped, failures = save(paths, output, progress=lambda *report: reports.append(report), **options)
    killer.join()
    assert skipped == 0
    assert [failure.split(": ")[0] for failure in failures] == [str(paths[-1])]
    assert reports == [(number, 7) for number in range(1, 8)]
    rows = {row["id"]: row for row in map(json.loads, output.read_text().splitlines())}
    assert set(rows) == set(map(str, paths))
    with slipstream.load(backend="onnx") as transcriber:
        whole = transcriber.transcribe(SAMPLE)
    assert {row["text"] for row in rows.values() if not row["error"]} == {whole.text}
    assert "not audio" in rows[str(paths[-1])]["error"]

    os.remove(paths[-1])  # the second run takes only the file that failed, and the new one
    shutil.copy(SAMPLE, paths[-1])
    assert save(paths, output, **options) == (6, [])
    assert len(output.read_text().splitlines()) == 7


def test_a_dataset_of_contents(cluster, tmp_path) -> None:
    dataset = ray.data.from_items([{"name": "x", "bytes": SAMPLE.read_bytes()}, {"name": "y", "bytes": b"-"}])
    rows = slipstream.ray.transcribe(dataset, id_column="name", backend="onnx").take_all()
    assert sorted((row["id"], bool(row["error"]), len(row["words"]) > 20) for row in rows) == [
        ("x", False, True),
        ("y", True, False),
    ]


def test_a_crash_leaves_whole_rows(tmp_path) -> None:
    path = tmp_path / "out.jsonl"
    with JsonLines(path) as sink:
        sink.add(ROW)
        sink.add(ROW | {"id": "failed", "error": "no such file"})
    path.write_text(path.read_text() + '{"id": "cut o')
    assert JsonLines(path).done() == {"a"}
    assert path.read_text() == json.dumps(ROW) + "\n"


def test_parquet_files_are_whole(tmp_path) -> None:
    words = [{"text": "b", "start": 0.0, "end": 0.5, "confidence": 0.9}]
    with ParquetFolder(tmp_path) as sink:
        sink.add(ROW | {"words": words})
        sink.add(ROW | {"id": "failed", "error": "no such file"})
    (tmp_path / "x.partial").write_text("cut off")
    assert ParquetFolder(tmp_path).done() == {"a"}
    assert ParquetFolder(tmp_path).done() == {"a"}
    [file] = tmp_path.glob("*.parquet")
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    assert table.schema == schema()
    assert table.to_pylist() == [ROW | {"words": words}]


def test_numbers_are_checked() -> None:
    with pytest.raises(ConfigError, match="slots=0"):
        slipstream.ray.transcribe(["a.wav"], slots=0)
