"""`import slipstream` and the command line's help load no heavy library."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"asyncio", "av", "huggingface_hub", "mlx", "onnxruntime", "sounddevice", "soxr", "torch", "transformers"}


@pytest.mark.parametrize("statement", ["import slipstream", "import slipstream.model.config", "import slipstream.cli"])
def test_import_is_light(statement: str) -> None:
    program = f"{statement}; import sys; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
