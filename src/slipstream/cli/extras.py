"""Commands whose packages come with an extra: without it they say which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from slipstream.errors import BackendError


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Within it, importing a package that is not installed raises `BackendError` that names the `extra` to install.

    `what`: what needs it, to begin the sentence.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise BackendError(f'{what} needs the extra "{extra}": pip install "slipstream-stt[{extra}]"') from error
