"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_MODEL = "tiny"

Model = Annotated[
    str, typer.Option("--model", "-m", help="A name that `slipstream models` lists, a repository id, or a folder.")
]
Device = Annotated[str, typer.Option("--device", "-d", help="auto, cpu, gpu (Apple silicon), cuda or cuda:N.")]
Backend = Annotated[str, typer.Option("--backend", help="auto, onnx, torch or mlx.")]
