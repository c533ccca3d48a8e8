"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

DEFAULT_MODEL = "tiny"

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="Model: a name that `slipstream models` lists, a Hub repository, or a folder."),
]
Device = Annotated[
    str, typer.Option("--device", "-d", help="Device: auto, cpu, gpu (CUDA or Apple silicon), cuda or cuda:N.")
]
Backend = Annotated[str, typer.Option("--backend", help="Backend: auto, onnx, torch or mlx.")]
Quantize = Annotated[
    Literal["int4", "int8", "none"] | None,
    typer.Option(
        "--quantize",
        help="Bits of the language model's weights, with onnx and mlx. Default with onnx: int8 for large models.",
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads, with onnx. Default: one per core.")]
