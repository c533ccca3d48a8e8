"""Transcribe archives on a Ray cluster, by Ray Data.

    import slipstream.ray

    rows = slipstream.ray.transcribe(paths, model="kyutai/stt-2.6b-en", slots=64, actors=(1, 8), num_gpus=1)
    rows.write_parquet("s3://bucket/transcripts")

Decoding is a stage with its own CPUs. Each actor runs an engine with many slots and takes a file as soon as a slot is
free, so a long file does not delay others. `save` writes the rows itself, and continues after a crash.
"""

from __future__ import annotations

import io
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from ray.data import ActorPoolStrategy, Dataset

import ray
from slipstream.errors import ConfigError, SlipstreamError

DECODED_RATE = 24_000
ACTOR_CPUS, DECODE_CPUS = 0.75, 0.25
"""Together one: with an actor per CPU of the cluster, decoding still has a place."""
DECODE_BYTES = 256 << 20
"""Memory that a decoding task reserves."""
ROWS_PER_PART = 256
"""Rows of a Parquet file: results that a crash loses are fewer."""

Row = dict[str, Any]
Progress = Callable[[int, int], None]
"""Called with the number of recordings that are done, and their total."""


def transcribe(
    recordings: Dataset | Sequence[str | os.PathLike[str]],
    *,
    model: str = "tiny",
    slots: int = 8,
    actors: int | tuple[int, int] = 1,
    backend: str = "auto",
    device: str = "auto",
    beam: int | None = None,
    id_column: str = "path",
    num_cpus: float = ACTOR_CPUS,
    num_gpus: float = 0,
) -> Dataset:
    """Transcribe recordings on the actors of a cluster.

    Args:
        recordings: Paths that every node can read; or a dataset with a column `path` of these, or `bytes` with the
            contents of files, such as from `ray.data.read_binary_files(..., include_paths=True)`.
        model: A built-in name, a Hub repository, or a folder on every node.
        slots: Recordings that an actor transcribes in parallel.
        actors: Their number, or the least and the most of them.
        backend: `torch`, `onnx`, `mlx` or `auto`.
        device: `cpu`, `cuda` or `auto`.
        beam: Hypotheses of each recording; None is the beam of the model.
        id_column: Identifies a recording; it becomes `id` of its row.
        num_cpus: CPUs of an actor. Decoding needs a quarter of a CPU more: without it, nothing starts.
        num_gpus: GPUs of an actor.

    Returns:
        A lazy dataset with a row per recording, in the order of completion: `id`, `text`, `words` (a list of `text`,
        `start`, `end`, `confidence`), `turns` (`start`, `end`), `duration` in seconds, `model`, `delay`, and `error`.
        A recording that cannot be read is a row with an `error`, which is empty otherwise.

    Raises:
        ConfigError: A number is invalid.

    Example:
        >>> for row in slipstream.ray.transcribe(["a.mp3", "b.mp3"], slots=4).iter_rows():
        ...     print(row["id"], row["error"] or row["text"])
    """
    least, most = (actors, actors) if isinstance(actors, int) else actors
    if slots < 1 or not 1 <= least <= most:
        raise ConfigError(f"slots={slots}, actors={actors}: expected numbers of at least 1, the least first")
    dataset = recordings if isinstance(recordings, Dataset) else _of_paths([os.fspath(path) for path in recordings])
    pool = ActorPoolStrategy(
        min_size=least,
        max_size=most,
        max_concurrent_calls_per_actor=slots,
        # The next recordings wait in the actor, so that a free slot does not wait for them.
        max_tasks_in_flight_per_actor=2 * slots,
        enable_true_multi_threading=True,
    )
    decoded = dataset.map_batches(
        _decode,
        fn_args=(id_column,),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=DECODE_CPUS,
        memory=DECODE_BYTES,  # also keeps Ray Data from fusing this stage with the actors, whose resources are others
    )
    transcribed: Dataset = decoded.map_batches(
        Actor,
        fn_constructor_args=(model, slots, backend, device, beam),
        compute=pool,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    return transcribed


def save(
    recordings: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[int, list[str]]:
    """Transcribe recordings and write a row for each, as it is done. A second call does the rest after a crash.

    Args:
        recordings: Paths that every node can read. A path is the ID of its row.
        output: A file whose name ends in `.jsonl`, or a folder for Parquet files of `ROWS_PER_PART` rows. Recordings
            whose ID is there already, without an error, are skipped.
        progress: Called after each recording.
        **options: As for `transcribe`.

    Returns:
        The number of recordings that were skipped, and an `id: error` for each that failed.

    Raises:
        ConfigError: An option is invalid.

    Example:
        >>> skipped, failures = slipstream.ray.data.save(paths, "transcripts.jsonl", slots=8, actors=4)
    """
    paths = list(dict.fromkeys(os.fspath(path) for path in recordings))
    sink = JsonLines(Path(output)) if os.fspath(output).endswith(".jsonl") else ParquetFolder(Path(output))
    done = sink.done()
    left = [path for path in paths if path not in done]
    failures = []
    count = len(paths) - len(left)
    with sink:
        for row in transcribe(left, **options).iter_rows() if left else ():
            sink.add(row)
            count += 1
            if row["error"]:
                failures.append(f"{row['id']}: {row['error'].removeprefix(row['id'] + ': ')}")
            if progress is not None:
                progress(count, len(paths))
    return len(paths) - len(left), failures


# ------------------------------------------------------------------------------------------------------------ workers


class Actor:
    """One engine. Ray Data calls it in `slots` threads, each with a recording."""

    def __init__(self, model: str, slots: int, backend: str, device: str, beam: int | None) -> None:
        import slipstream

        self._transcriber = slipstream.load(
            model, slots=slots, backend=backend, device=device, beam=beam, mode="recordings"
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Transcribe a batch of one recording."""
        return pa.Table.from_pylist([self._transcribe(row) for row in batch.to_pylist()], schema())

    def _transcribe(self, row: Row) -> Row:
        result = _empty(row["id"], row["error"])
        if result["error"]:
            return result
        audio_S = np.frombuffer(row["pcm"], np.float32)
        try:
            transcript = self._transcriber.transcribe(audio_S, DECODED_RATE)
        except SlipstreamError as error:
            return result | {"error": str(error)}
        fields = json.loads(transcript.to_json())
        names = ("text", "words", "turns", "duration", "model", "delay")
        return result | {name: fields[name] for name in names}


def _decode(batch: pa.Table, id_column: str) -> pa.Table:
    """Decode a batch of recordings to float32 at `DECODED_RATE`, or to the error."""
    rows = [{"id": str(row[id_column]), **_decoded(row)} for row in batch.to_pylist()]
    fields = [("id", pa.string()), ("pcm", pa.large_binary()), ("error", pa.string())]
    return pa.Table.from_pylist(rows, pa.schema(fields))


def _decoded(row: Row) -> Row:
    from slipstream.audio import load

    try:
        audio_S = load(io.BytesIO(row["bytes"]) if "bytes" in row else row["path"], DECODED_RATE)
    except SlipstreamError as error:
        return {"pcm": b"", "error": str(error)}
    return {"pcm": audio_S.tobytes(), "error": ""}


def _empty(id: str, error: str) -> Row:
    return {
        "id": id,
        "text": "",
        "words": [],
        "turns": [],
        "duration": 0.0,
        "model": "",
        "delay": 0.0,
        "error": error,
    }


def schema() -> pa.Schema:
    """Return the types of the columns of `transcribe`."""
    word = pa.struct([("text", pa.string()), *((name, pa.float64()) for name in ("start", "end", "confidence"))])
    turn = pa.struct([("start", pa.float64()), ("end", pa.float64())])
    types = {"words": pa.list_(word), "turns": pa.list_(turn), "duration": pa.float64(), "delay": pa.float64()}
    return pa.schema([(name, types.get(name, pa.string())) for name in _empty("", "")])


def _of_paths(paths: list[str]) -> Dataset:
    # A block per recording: an actor takes one as soon as a slot is free.
    dataset: Dataset = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=len(paths))
    return dataset


# ------------------------------------------------------------------------------------------------------------ outputs


class JsonLines:
    """A file with a JSON object per row. Each row is written when it comes; what a crash cut off is removed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def done(self) -> set[str]:
        """Return the IDs of the rows without an error, and keep only these rows."""
        kept = [line for line, row in self._rows() if not row["error"]]
        if self._path.exists():
            other = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
            other.write_text("".join(kept), encoding="utf-8")
            other.replace(self._path)
        return {row["id"] for _, row in self._rows()}

    def add(self, row: Row) -> None:
        """Write a row."""
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def __enter__(self) -> JsonLines:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _rows(self) -> Iterator[tuple[str, Row]]:
        if not self._path.exists():
            return
        with self._path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield line, json.loads(line)


class ParquetFolder:
    """A folder of Parquet files. A file appears when it is complete, under a unique name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[Row] = []

    def done(self) -> set[str]:
        """Return the IDs of the rows without an error, and keep only these rows."""
        done: set[str] = set()
        for file in self._folder.glob("*.parquet"):
            table = pyarrow.parquet.read_table(file)
            kept = table.filter(pyarrow.compute.equal(table["error"], ""))
            if len(kept) < len(table):
                self._replace(file, kept)
            done |= set(kept["id"].to_pylist())
        return done

    def add(self, row: Row) -> None:
        """Keep a row, and write a file when there are enough."""
        self._rows.append(row)
        if len(self._rows) >= ROWS_PER_PART:
            self._write()

    def _write(self) -> None:
        self._replace(self._folder / f"{uuid.uuid4().hex}.parquet", pa.Table.from_pylist(self._rows, schema()))
        self._rows = []

    def _replace(self, file: Path, table: pa.Table) -> None:
        partial = file.with_suffix(".partial")
        pyarrow.parquet.write_table(table, partial)
        partial.replace(file)

    def __enter__(self) -> ParquetFolder:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._rows:
            self._write()
