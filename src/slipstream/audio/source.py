"""What audio is read from: a path, or a binary file object."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from slipstream.errors import AudioError

Source = str | os.PathLike[str] | BinaryIO


def source_name(source: Source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    name = getattr(source, "name", "the stream")
    return "standard input" if name in (0, "<stdin>") else str(name)


@contextmanager
def opened(source: Source, name: str) -> Iterator[BinaryIO]:
    if not isinstance(source, (str, os.PathLike)):
        yield source
        return
    path = Path(source)
    if path.is_dir():
        raise AudioError(f"{name}: is a folder, not an audio file")
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise AudioError(f"{name}: no such file") from error
    except OSError as error:
        raise AudioError(f"{name}: cannot be read: {error.strerror}") from error
    with file:
        if path.is_file() and not path.stat().st_size:
            raise AudioError(f"{name}: the file is empty")
        yield file
