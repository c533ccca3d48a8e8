"""Write the graphs of a checkpoint and their weights to files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from slipstream.backends.onnx.codec import codec_model
from slipstream.backends.onnx.graph import VERSION
from slipstream.backends.onnx.lm import lm_model
from slipstream.backends.onnx.transformer import Quantize, Weight, Weights
from slipstream.checkpoints.checkpoint import Checkpoint, write_folder
from slipstream.checkpoints.kyutai import dump_files
from slipstream.checkpoints.sources import Sources
from slipstream.errors import CheckpointError
from slipstream.model.config import CodecConfig, FileNames, STTConfig

LM_FILE = "lm.onnx"
CODEC_FILE = "codec.onnx"

Progress = Callable[[int, int], None]
"""Called with the number of converted parameters and their total."""


def export(
    load: Callable[[], Checkpoint], folder: Path, *, quantize: Quantize, progress: Progress | None = None
) -> None:
    """Write the graphs of a checkpoint, its configuration and its tokenizer into `folder`, if it does not exist.

    The files are written to a temporary folder, which is then renamed. Other processes wait.

    Args:
        load: Reads the checkpoint; called only if the folder does not exist.
        folder: Where to write.
        quantize: Precision of the weights.
        progress: Called after each tensor.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.exists():
                _write(load(), folder, quantize, progress)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot write the converted model: {error}") from error


def cache_folder(root: Path, sources: Sources, quantize: Quantize) -> Path:
    """Return the folder under `root` for the graphs of these sources, for this version of files and configuration."""
    adapters = [sources.adapter] if sources.adapter else []
    files = [*sources.lm, *sources.codec, sources.tokenizer, *(adapter.path for adapter in adapters)]
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    scalings = [adapter.scaling for adapter in adapters]
    identity = json.dumps([VERSION, sources.config.model_dump_json(), stats, *scalings])
    return root / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}-{quantize or 'float32'}"


def codec_graph_of(codec: Path, config: CodecConfig) -> Path:
    """Return the file of the codec's graph for the lookahead of `config`: `codec`, or another in the same folder.

    A model with another lookahead for recordings has two graphs, which share one file of weights.
    """
    other = _other_graph(codec, config)
    return other if other is not None and other.is_file() else codec


def _other_graph(codec: Path, config: CodecConfig) -> Path | None:
    return codec.with_stem(f"{codec.stem}-lookahead-{config.whisper.lookahead}") if config.whisper else None


def _write(checkpoint: Checkpoint, folder: Path, quantize: Quantize, progress: Progress | None) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    config = checkpoint.config
    total = sum(array.size for weights in (checkpoint.lm, checkpoint.codec) for array in weights.values())
    lm = _Watched(checkpoint.lm, 0, total, progress)
    lm_model(config.lm, lm, config.condition_values, quantize=quantize).save(partial / LM_FILE)
    codec = _Watched(checkpoint.codec, lm.done, total, progress)
    codec_graph = codec_model(config.codec, codec, num_codebooks=config.lm.num_codebooks, quantize=quantize)
    codec_graph.save(partial / CODEC_FILE)
    _write_recordings(config, checkpoint.codec, partial / CODEC_FILE, quantize)
    codec_config = None if config.codec == CodecConfig() else "mimi.json"
    tokenizer = checkpoint.tokenizer.name
    files = FileNames(lm=LM_FILE, codec=CODEC_FILE, codec_config=codec_config, tokenizer=tokenizer)
    texts = dump_files(config.model_copy(update={"files": files}))
    write_folder(partial, texts, {}, checkpoint.tokenizer, tokenizer)
    for file in partial.iterdir():
        _sync(file)
    partial.rename(folder)
    if progress is not None:
        progress(total, total)


def _write_recordings(config: STTConfig, weights: Weights, file: Path, quantize: Quantize) -> None:
    """Write the graph of a codec for recordings, if it differs from that for live streams, whose weights it reads.

    Only the sizes of tails depend on the lookahead, so the weights are at the same places.
    """
    recordings = config.for_recordings().codec
    other = _other_graph(file, recordings)
    if other is not None and recordings != config.codec:
        graph = codec_model(recordings, weights, num_codebooks=config.lm.num_codebooks, quantize=quantize)
        other.write_bytes(graph.proto)


def _sync(file: Path) -> None:
    """Wait until a file is on disk, because a rename may reach the disk before the data."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Watched(Mapping[str, Weight]):
    """Weights that report progress each time a tensor is read."""

    def __init__(self, weights: Weights, done: int, total: int, progress: Progress | None) -> None:
        self.done = done
        self._weights, self._total, self._progress = weights, total, progress

    def __getitem__(self, name: str) -> Weight:
        array = self._weights[name]
        self.done += array.size
        if self._progress is not None:
            self._progress(self.done, self._total)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
