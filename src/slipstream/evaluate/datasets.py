"""Recordings to evaluate on, from a manifest or a dataset of the Hugging Face Hub."""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from slipstream.data.manifest import Recording, read_manifest
from slipstream.data.sources import load_datasets, text_of
from slipstream.data.wave import write_wave


def read_recordings(source: str) -> Iterator[Recording]:
    """Read recordings from the path of a manifest, or from `hf:NAME[:CONFIG[:SPLIT]]` (by default the split "test").

    Raises `BackendError` where the package datasets is not installed, `SlipstreamError` for a dataset without texts.
    """
    if source.startswith("hf:"):
        name, *rest = source.removeprefix("hf:").split(":")
        return _hub(name, *rest)
    return read_manifest(Path(source))


def _hub(name: str, config: str | None = None, split: str = "test") -> Iterator[Recording]:
    rows = load_datasets().load_dataset(name, config or None, split=split, streaming=True)
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)  # the audio is read after the last row was yielded
    for number, row in enumerate(rows):
        path = Path(folder.name) / f"{number}.wav"
        write_wave(path, np.asarray(row["audio"]["array"]), int(row["audio"]["sampling_rate"]))
        yield Recording(path, text_of(row, name), lang=str(row.get("locale", "en"))[:2], dataset=name, split=split)
