"""`import slipstream` and the command line's help load no heavy library."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

HEAVY = {"asyncio", "av", "huggingface_hub", "mlx", "onnxruntime", "sounddevice", "soxr", "torch", "transformers"}


@pytest.mark.parametrize("statement", ["import slipstream", "import slipstream.model.config", "import slipstream.cli"])
def test_import_is_light(statement: str) -> None:
    assert not loaded_by(statement) & HEAVY


def test_the_client_loads_only_its_own_dependencies() -> None:
    installed = set(importlib.metadata.packages_distributions()) - {"slipstream"}
    assert loaded_by("import slipstream.client") & installed <= {
        *("anyio", "numpy", "rich", "websockets"),
        *("sniffio", "typing_extensions"),  # of anyio
    }


def loaded_by(statement: str) -> set[str]:
    program = f"import sys; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.split()}
