"""The steps for a new dialect and a new backend name files and functions that exist."""

import re
from pathlib import Path
from types import ModuleType

import pytest

from slipstream import backends, dialects
from slipstream.dialects import formats, order
from slipstream.model import numerics

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", [backends, dialects])
def test_the_steps_name_what_exists(package: ModuleType) -> None:
    steps = package.__doc__ or ""
    files = re.findall(r"`([\w/]+/[\w-]+\.(?:py|md|yaml)|[\w-]+\.(?:toml|txt|yml))`", steps)
    assert files
    assert [
        name for name in files if not (ROOT / name).exists() and not (ROOT / "src/slipstream" / name).exists()
    ] == []
    modules = {"numerics": numerics, "formats": formats, "order": order}
    names = re.findall(r"`(numerics|formats|order)\.(\w+)`", steps)
    assert names
    assert [name for module, name in names if module not in modules or not hasattr(modules[module], name)] == []
