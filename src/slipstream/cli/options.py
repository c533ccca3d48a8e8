"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

DEFAULT_MODEL = "tiny"

Model = Annotated[
    str, typer.Option("--model", "-m", help="A name that `slipstream models` lists, a repository id, or a folder.")
]
Device = Annotated[str, typer.Option("--device", "-d", help="auto, cpu, gpu (CUDA or Apple silicon), cuda or cuda:N.")]
Backend = Annotated[str, typer.Option("--backend", help="auto, onnx, torch or mlx.")]
Quantize = Annotated[
    Literal["int4", "int8", "none"] | None,
    typer.Option("--quantize", help="Keep the LM's weights in 4 or 8 bits: onnx (int8 for large models) and mlx."),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Of the processor, with onnx; one for each core if not given.")
]
