"""The parts of the page that need no browser, in Node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NODE = shutil.which("node")
TESTS = Path(__file__).parent / "page" / "logic.test.mjs"


def _runs_modules() -> bool:
    """Whether Node takes a .js file with `export` for a module, as browsers do: from 20.19 and 22.7 on."""
    if NODE is None:
        return False
    version = subprocess.check_output([NODE, "--version"], text=True)
    major, minor = map(int, version.lstrip("v").split(".")[:2])
    return (major, minor) >= (22, 7) or (major == 20 and minor >= 19)


@pytest.mark.skipif(not _runs_modules(), reason="no Node 20.19, 22.7 or later")
def test_page_logic() -> None:
    assert NODE is not None
    result = subprocess.run([NODE, "--test", str(TESTS)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
