"""`slipstream convert`: convert a checkpoint to another layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from slipstream.cli.console import notice
from slipstream.cli.progress import counting_bar
from slipstream.errors import CheckpointError

if TYPE_CHECKING:
    from slipstream.bundle import ModelBundle
    from slipstream.checkpoints.sources import Origin


def convert(
    source: Annotated[str, typer.Argument(help="A folder, a repository id, or a built-in model.")],
    destination: Annotated[Path, typer.Argument(help="A new folder.")],
    layout: Annotated[
        Literal["kyutai", "candle", "mlx", "transformers", "onnx"], typer.Option("--layout", help="Layout to write.")
    ] = "kyutai",
    quantize: Annotated[
        Literal["int4", "int5", "int6", "int7", "int8"] | None,
        typer.Option(
            "--quantize",
            help="Bits of the weights. kyutai: int4 to int8, in Slipstream's own format, also of a Whisper encoder. "
            "mlx: int4 or int8 of the LM, in MLX's format. onnx: int4 or int8.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option("--dtype", help="Type of the LM's weights. Default: unchanged."),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of the repository.")] = None,
) -> None:
    """Convert a checkpoint between layouts."""
    origin: Origin = {"revision": revision} if revision else {}
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise CheckpointError(f"{destination} exists and is not an empty folder: choose a new one")
    if layout == "onnx":
        if dtype:
            raise typer.BadParameter("onnx weights are float32 or quantised: use --quantize", param_hint="--dtype")
        if quantize not in (None, "int4", "int8"):
            raise typer.BadParameter(f"onnx has int4 and int8, not {quantize}", param_hint="--quantize")
        _to_onnx(_resolved(source, origin), destination, quantize)
    else:
        from slipstream.checkpoints.checkpoint import convert as convert_checkpoint

        bits = int(quantize.removeprefix("int")) if quantize else None
        sources = _resolved(source, origin).sources
        convert_checkpoint(sources, destination, layout, quantize=bits, dtype=dtype)
    notice(f"{destination} now holds {source} in the layout {layout}.")


def _resolved(source: str, origin: Origin) -> ModelBundle:
    """The model, whose tokenizer is copied as it is. Raises `CheckpointError` if that is no tokenizer."""
    from slipstream.bundle import ModelBundle
    from slipstream.model.text import Tokenizer

    bundle = ModelBundle.resolve(source, **origin)
    Tokenizer(bundle.sources.tokenizer)
    return bundle


def _to_onnx(bundle: ModelBundle, destination: Path, quantize: Literal["int4", "int8"] | None) -> None:
    from slipstream.backends.onnx.export import export

    if destination.exists():
        destination.rmdir()
    with counting_bar("Converting") as progress:
        export(bundle.checkpoint, destination, quantize=quantize, progress=progress)
