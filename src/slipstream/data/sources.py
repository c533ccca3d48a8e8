"""Recordings from a manifest, from tar shards (WebDataset), or streamed from the Hugging Face Hub.

Shards and datasets of the Hub are read once, one recording after the other, and never unpacked: the audio of a
recording is in a temporary file until the next one is read.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

from slipstream.data.manifest import ManifestError, Recording, parse_recording, read_manifest
from slipstream.errors import BackendError, SlipstreamError

AUDIO = (".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav", ".webm")
TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript", "normalized_text")
"""Columns of a dataset of the Hub that may hold the text, the first that is there."""


def stream_recordings(source: str) -> Iterator[Recording]:
    """Read recordings one after the other; the audio of shards and of the Hub is there until the next one.

    Args:
        source: a manifest; a tar shard or a pattern of several, `shards/*.tar`; or `hf:NAME[:CONFIG[:SPLIT]]`
            (by default the split "train").

    Raises:
        ManifestError: A line or a sample cannot be used.
        BackendError: The package datasets is not installed.
    """
    if source.startswith("hf:"):
        name, config, split, *_ = [*source.removeprefix("hf:").split(":"), "", ""]
        yield from _hub(name, config or None, split or "train")
    elif source.endswith((".tar", ".tar.gz", ".tgz")):
        shards = sorted(glob(source))
        if not shards:
            raise ManifestError(f"{source}: there is no such shard")
        for shard in shards:
            yield from _shard(Path(shard))
    else:
        yield from read_manifest(Path(source))


def _shard(path: Path) -> Iterator[Recording]:
    """The samples of a shard: members of one name, `NAME.flac` with `NAME.json` (a manifest's line) or `NAME.txt`."""
    with tempfile.TemporaryDirectory() as folder, _open(path) as archive:
        sample: dict[str, bytes] = {}
        key = ""
        for member in archive:
            if not member.isfile():
                continue
            name, _, ending = Path(member.name).name.partition(".")
            name = str(Path(member.name).with_name(name))
            if sample and name != key:
                yield _sample(path, key, sample, Path(folder))
                sample = {}
            file = archive.extractfile(member)
            key, sample["." + ending.lower()] = name, file.read() if file else b""
        if sample:
            yield _sample(path, key, sample, Path(folder))


def _open(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r|*")
    except (OSError, tarfile.TarError) as error:
        raise ManifestError(f"{path}: cannot be read as a tar archive: {error}") from error


def _sample(path: Path, key: str, sample: dict[str, bytes], folder: Path) -> Recording:
    place = f"{path}, sample {key}"
    endings = [ending for ending in sample if ending in AUDIO]
    if len(endings) != 1:
        raise ManifestError(f"{place}: has {', '.join(sample)}; expected one of {', '.join(AUDIO)}")
    audio = folder / f"audio{endings[0]}"
    audio.write_bytes(sample[endings[0]])
    try:
        given = json.loads(sample.get(".json", b"{}"))
        text = sample[".txt"].decode("utf-8").strip() if ".txt" in sample else given.get("text", "")
        line = json.dumps({**given, "audio": audio.name, "text": text})
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise ManifestError(f"{place}: its .json or .txt cannot be read: {error}") from error
    return parse_recording(line, folder, place)


def _hub(name: str, config: str | None, split: str) -> Iterator[Recording]:
    datasets = load_datasets()
    rows = datasets.load_dataset(name, config, split=split, streaming=True)
    rows = rows.cast_column("audio", datasets.Audio(decode=False))
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            audio = Path(folder) / f"audio{Path(row['audio'].get('path') or '').suffix or '.wav'}"
            audio.write_bytes(row["audio"]["bytes"])
            licence = {"license": str(row["license"])} if row.get("license") else {}
            language = str(row.get("locale") or row.get("language") or "en")[:2]
            speaker = str(row.get("speaker_id") or row.get("client_id") or "")
            yield Recording(
                audio, text_of(row, name), speaker=speaker, lang=language, dataset=name, split=split, extra=licence
            )


def load_datasets() -> Any:
    """The package datasets. Raises `BackendError` where it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise BackendError(
            "datasets of the Hugging Face Hub need the package datasets: pip install datasets"
        ) from error
    return datasets


def text_of(row: dict[str, Any], name: str) -> str:
    """The text of a row of a dataset. Raises `SlipstreamError` for a dataset without texts."""
    for column in TEXT_COLUMNS:
        if column in row:
            return str(row[column])
    raise SlipstreamError(f"{name} has no text column; expected one of {', '.join(TEXT_COLUMNS)}")
