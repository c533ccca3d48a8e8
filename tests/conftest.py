"""Every test is deterministic: seeded generators, and property tests that draw the same examples each time."""

from __future__ import annotations

import sys

import pytest
from hypothesis import settings

settings.register_profile("slipstream", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("slipstream")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
