"""Errors for commands whose optional packages are not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from slipstream.errors import BackendError


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Raise `BackendError` when an import within the context finds a package missing.

    Args:
        extra: The extra that installs the package.
        what: What needs the package; the message begins with it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise BackendError(f'{what} needs the extra "{extra}": pip install "slipstream-stt[{extra}]"') from error
