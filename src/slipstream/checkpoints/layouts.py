"""The published layouts by name, and the layout of a given file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from slipstream.checkpoints import kyutai, mimi, mlx, transformers
from slipstream.checkpoints.tables import Table
from slipstream.checkpoints.tensors import Tensors
from slipstream.errors import CheckpointError
from slipstream.model.config import CodecConfig, LMConfig


@dataclass(frozen=True, slots=True)
class Layout:
    """How a family of published repositories stores the LM and the codec."""

    lm: Callable[[LMConfig], Table]
    codec: Callable[[CodecConfig], Table]


_KYUTAI = Layout(kyutai.lm_table, mimi.codec_table)

LAYOUTS: Mapping[str, Layout] = {
    "kyutai": _KYUTAI,
    # The Rust server reads the files that Kyutai publish for PyTorch, if there is no depth Transformer in them.
    "candle": Layout(kyutai.rust_lm_table, mimi.codec_table),
    "mlx": Layout(mlx.lm_table, mimi.codec_table),
    "transformers": Layout(transformers.lm_table, transformers.codec_table),
}


def get_layout(name: str) -> Layout:
    """The layout of this name. Raises `CheckpointError` that lists the known names."""
    if name not in LAYOUTS:
        raise CheckpointError(f"layout {name!r} is unknown: expected {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def layouts_of(config: LMConfig) -> list[Layout]:
    """The layouts that can hold an LM. Only Kyutai's own have a depth Transformer, the Rust server's a simple one.

    Whisper's decoder is stored in Kyutai's layout only.
    """
    if config.whisper:
        return [LAYOUTS["kyutai"]]
    if config.depth is None:
        return list(LAYOUTS.values())
    simple = not config.demux_text and not config.depth.output_norm and config.transformer.norm == "rms_norm"
    return [LAYOUTS["kyutai"], LAYOUTS["candle"]] if simple else [LAYOUTS["kyutai"]]


def fitting(tables: Iterable[Table], tensors: Tensors, where: str) -> Table:
    """The table with most of a file's names. Raises `CheckpointError` if no table has any of them."""

    def known(table: Table) -> int:
        return len(table.shapes.keys() & {table.spelled(name) for name in tensors})

    best = max(tables, key=known)
    if known(best) == 0:
        some = ", ".join(list(tensors)[:5])
        raise CheckpointError(f"{where} has no known layout ({', '.join(LAYOUTS)}): its tensors are called {some} ...")
    return best
