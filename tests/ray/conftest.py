"""One Ray on this machine for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    from benchmarks.ray_serve import local_cluster

    with local_cluster():
        yield
