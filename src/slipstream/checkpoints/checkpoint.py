"""Load checkpoints from any published layout, save them in any, and convert between layouts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slipstream.checkpoints import eight_bit, mlx
from slipstream.checkpoints.kyutai import dump_files
from slipstream.checkpoints.layouts import LAYOUTS, fitting, get_layout, layouts_of
from slipstream.checkpoints.lora import fuse
from slipstream.checkpoints.packed_bits import BITS
from slipstream.checkpoints.quantization import GROUP_SIZES
from slipstream.checkpoints.sources import Origin, Ref, Sources, resolve
from slipstream.checkpoints.tensors import DTYPES, Array, Tensors, read_tensors, write_tensors
from slipstream.checkpoints.transformers import EXTRAS_FILE, dump_config, is_extra, with_unread_codebooks
from slipstream.errors import CheckpointError
from slipstream.model.config import CodecConfig, FileNames, LMConfig, STTConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole model: configuration, tensors under canonical names (see `model.names`), and the tokenizer's file.

    Tensors that are loaded from a file keep their types; most are views of the file, not copies.
    """

    config: STTConfig
    lm: Tensors
    codec: Tensors
    tokenizer: Path


def read_checkpoint(sources: Sources, *, keep_quantized: bool = False, keep_int8: bool = False) -> Checkpoint:
    """Read the tensors of a checkpoint of any layout.

    A LoRA adapter is added to the weights that it adapts, which become floats.

    Args:
        sources: The configuration and the files.
        keep_quantized: Keep quantised matrices as they are (see `mlx.packed_table`); otherwise they become floats.
        keep_int8: Leave matrices in 8 bits or fewer in the layout `kyutai` as `EightBit`, not floats.

    Raises:
        CheckpointError: A file cannot be read, or tensors do not fit the configuration; the message names them all.
    """
    config, adapter = sources.config, sources.adapter
    if adapter is None:
        lm = read_lm(sources.lm, config.lm, keep_quantized=keep_quantized, keep_int8=keep_int8)
    else:
        changes = read_tensors(adapter.path)
        base = _before_growth(config.lm, sources.lm) if "text_linear.weight" in changes else config.lm
        lm = fuse(read_lm(sources.lm, base), changes, config.lm, adapter.scaling, str(adapter.path))
        config = config.model_copy(update={"files": config.files.model_copy(update={"lora": None})})
    return Checkpoint(
        config=config,
        lm=lm,
        codec=read_codec(sources.codec, config.codec, keep_int8=keep_int8),
        tokenizer=sources.tokenizer,
    )


def read_lm(
    paths: Sequence[Path], config: LMConfig, *, keep_quantized: bool = False, keep_int8: bool = False
) -> dict[str, Array]:
    """Read the LM's tensors from files of any layout. Arguments and errors are those of `read_checkpoint`."""
    tensors, where = _read(paths)
    layouts = layouts_of(config)
    tables = [layout.lm(config) for layout in layouts]
    if keep_quantized and LAYOUTS["mlx"] in layouts:
        tables.append(mlx.packed_table(config, tensors))
    return fitting(tables, tensors, where).read(tensors, where, keep_int8=keep_int8)


def read_codec(paths: Sequence[Path], config: CodecConfig, *, keep_int8: bool = False) -> dict[str, Array]:
    """Read the codec's tensors from files of any layout. Raises `CheckpointError` as `read_checkpoint` does."""
    tensors, where = _read(paths)
    table = fitting([layout.codec(config) for layout in LAYOUTS.values()], tensors, where)
    return table.read(tensors, where, keep_int8=keep_int8)


def save_checkpoint(
    checkpoint: Checkpoint, folder: Path, layout: str, *, quantize: int | None = None, dtype: str | None = None
) -> None:
    """Write a checkpoint into a folder, which is created if it does not exist.

    Args:
        checkpoint: The model.
        folder: Where to write.
        layout: A name in `LAYOUTS`.
        quantize: 4 or 8 bits for the LM in the layout `mlx`, in MLX's format; 4 to 8 bits for the LM and a Whisper
            encoder in the layout `kyutai`, which only Slipstream can read then.
        dtype: A name in `DTYPES` for the LM's weights; by default they keep their type, as the codec always does.

    Raises:
        CheckpointError: The layout cannot hold the model.
    """
    tables = get_layout(layout)
    if quantize is not None and layout not in ("kyutai", "mlx"):
        raise CheckpointError(f"the layout {layout} has no quantised weights: use the layout kyutai, mlx or onnx")
    widths = (*BITS, 8) if layout == "kyutai" else tuple(GROUP_SIZES)
    if quantize is not None and quantize not in widths:
        known = ", ".join(map(str, widths))
        raise CheckpointError(f"cannot quantise to {quantize} bits: the layout {layout} has {known}")
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"dtype={dtype!r} is unknown: expected {', '.join(DTYPES)}")
    config = checkpoint.config
    if tables not in layouts_of(config.lm):
        raise CheckpointError(f"the layout {layout} cannot hold Whisper's text decoder: use the layout kyutai or onnx")
    lm: Tensors = tables.lm(config.lm).write(_cast(checkpoint.lm, dtype))
    codec = tables.codec(config.codec).write(checkpoint.codec)
    if quantize is not None and layout == "kyutai":
        lm = eight_bit.packed(lm, quantize)
        codec = eight_bit.packed(codec, quantize) if config.codec.whisper else codec
    elif quantize is not None:
        lm = mlx.quantized(lm, quantize)
    lm_file = mlx.file_name(quantize if layout == "mlx" else None)
    files = _file_names(config, lm_file, checkpoint.tokenizer.name)
    config = config.model_copy(update={"files": files})
    texts: dict[str, dict[str, Any]]
    if layout == "transformers":
        lm = with_unread_codebooks(lm, config.lm, config.codec)
        texts = dump_config(config, lm["lm_head.weight"].dtype.name)
        tensors = {files.lm: {name: array for name, array in {**lm, **codec}.items() if not is_extra(name)}}
        if extras := {name: array for name, array in lm.items() if is_extra(name)}:
            tensors[EXTRAS_FILE] = extras
    else:
        texts = dump_files(config)
        tensors = {files.lm: dict(lm), files.codec: codec}
    write_folder(Path(folder), texts, tensors, checkpoint.tokenizer, files.tokenizer)


def write_folder(
    folder: Path,
    texts: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, Tensors],
    tokenizer: Path | None = None,
    tokenizer_name: str = "",
) -> None:
    """Write the files of a checkpoint into a folder, which is created if it does not exist.

    Args:
        folder: Where to write.
        texts: The content of each configuration file.
        tensors: The tensors of each file of weights, under the names of its layout.
        tokenizer: A tokenizer to copy; it may be in the folder already.
        tokenizer_name: The name of the copy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name, arrays in tensors.items():
        write_tensors(folder / name, arrays)
    if tokenizer is not None and tokenizer.resolve() != (folder / tokenizer_name).resolve():
        shutil.copyfile(tokenizer, folder / tokenizer_name)


def convert(
    source: Ref | Sources,
    destination: Path,
    layout: str,
    *,
    quantize: int | None = None,
    dtype: str | None = None,
    **origin: Unpack[Origin],
) -> None:
    """Read a checkpoint of any layout and write it into a new folder in `layout`.

    Args:
        source: A folder, a repository id or a built-in name, with the arguments of `sources.resolve`; or sources that
            are resolved already.
        destination: A folder that does not exist or is empty.
        layout: A name in `LAYOUTS`.
        quantize: See `save_checkpoint`.
        dtype: See `save_checkpoint`.

    Raises:
        CheckpointError: The destination is not empty, or the layout cannot hold the model.
    """
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise CheckpointError(f"{destination} is not an empty folder: choose a new one")
    sources = source if isinstance(source, Sources) else resolve(source, **origin)
    try:
        save_checkpoint(read_checkpoint(sources), destination, layout, quantize=quantize, dtype=dtype)
    except BaseException:
        for part in destination.glob("*"):  # so that the same command can be repeated
            part.unlink()
        raise


def _before_growth(config: LMConfig, paths: Sequence[Path]) -> LMConfig:
    """The LM with the vocabulary of its files, to which an adapter adds pieces."""
    head = _read(paths)[0].get("text_linear.weight")
    return config if head is None else config.model_copy(update={"text_vocab": len(head)})


def _read(paths: Sequence[Path]) -> tuple[dict[str, Array], str]:
    """All tensors of some files, and what to call the files in messages."""
    tensors: dict[str, Array] = {}
    where = ", ".join(map(str, paths))
    for path in paths:
        found = read_tensors(path)
        twice = tensors.keys() & found.keys()
        if twice:
            raise CheckpointError(f"{where}: {', '.join(sorted(twice))} in more than one of these files")
        tensors |= found
    return tensors, where


def _cast(tensors: Tensors, dtype: str | None) -> Tensors:
    if dtype is None:
        return tensors
    return {name: array.astype(DTYPES[dtype], copy=False) for name, array in tensors.items()}


def _file_names(config: STTConfig, lm: str, tokenizer: str) -> FileNames:
    codec = Path(config.files.codec).name
    return FileNames(
        lm=lm,
        codec=codec if codec != lm else "mimi.safetensors",  # from a file that holds both
        codec_config=None if config.codec == CodecConfig() else "mimi.json",
        tokenizer=tokenizer,
    )
