"""The published files, to the byte: their sizes follow from the names, shapes and types of all that they hold."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from slipstream.checkpoints.kyutai import lm_table
from slipstream.checkpoints.mimi import codec_table
from slipstream.checkpoints.presets import PRESETS
from slipstream.checkpoints.tables import Table

LM_1B, LM_2_6B = (PRESETS[f"kyutai/{name}"].lm for name in ("stt-1b-en_fr-candle", "stt-2.6b-en"))
MIMI = PRESETS["kyutai/stt-1b-en_fr-candle"].codec


def file_size(table: Table, dtype: str) -> int:
    """Bytes of a safetensors file with the table's tensors: the format has no other freedom than their order."""
    shapes = table.shapes | {name: array.shape for name, array in table.constants.items()}
    item = {"BF16": 2, "F32": 4}[dtype]
    header, offset = {}, 0
    for name in sorted(shapes):
        end = offset + item * math.prod(shapes[name])
        header[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"))
    return 8 + int(np.ceil(len(text) / 8)) * 8 + offset


@pytest.mark.parametrize(
    ("table", "dtype", "published"),
    [
        (lm_table(LM_1B), "BF16", 1_978_522_200),  # kyutai/stt-1b-en_fr-candle, model.safetensors
        (lm_table(LM_2_6B), "BF16", 5_234_275_128),  # kyutai/stt-2.6b-en, model.safetensors
        (codec_table(MIMI), "F32", 384_644_900),  # mimi-pytorch-e351c8d8@125.safetensors, in both
    ],
    ids=["stt-1b-en_fr", "stt-2.6b-en", "mimi"],
)
def test_names_and_shapes_make_the_published_size(table: Table, dtype: str, published: int) -> None:
    assert file_size(table, dtype) == published
