"""No test depends on how fast a product is: runs find the two types equally fast, and take float32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slipstream.train import precision


@pytest.fixture(scope="session", autouse=True)
def _no_timing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "product_seconds", lambda dtype: 1.0)
        precision.fastest.cache_clear()
        yield
    precision.fastest.cache_clear()
