"""Sources of audio: a path, or a binary file object, which may be a pipe."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol

from slipstream.errors import AudioError

Source = str | os.PathLike[str] | BinaryIO


class Readable(Protocol):
    """What decoding needs of a file object; `seek` only where `seekable` is true."""

    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...
    def seekable(self) -> bool: ...


class Pipe:
    """A file that cannot seek. Keeps the data it has read, so that they can be read again, until it is closed."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._name = name
        self._read = getattr(file, "read1", file.read)  # read1 returns what is available, read waits for all
        self._kept: IO[bytes] | None = tempfile.TemporaryFile()  # noqa: SIM115
        self._position = 0

    def read(self, size: int) -> bytes:
        data: bytes = self._read(size)
        self._position += len(data)
        if self._kept is not None:
            self._kept.write(data)
            if self._position > SPOOL_BYTES:
                self.close()
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        raise OSError("a pipe cannot seek")

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """Drop the kept data, and keep no more; reading continues."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def rest_on_disk(self) -> IO[bytes]:
        """Read to the end: the whole content as a temporary file, at its beginning. Empties the pipe.

        Raises `AudioError` when it is larger than `SPOOL_BYTES`.
        """
        while self._kept is not None and self.read(1 << 20):
            pass
        if self._kept is None:
            raise AudioError(
                f"{self._name}: is a pipe with more than {SPOOL_BYTES >> 30} GiB in a format that must seek: "
                "save it to a file first"
            )
        if not self._position:
            raise AudioError(f"{self._name}: is empty")
        kept, self._kept = self._kept, None
        kept.seek(0)
        return kept


SPOOL_BYTES = 1 << 30
"""Most data of a pipe that is copied to disk for a format that must seek."""


def can_seek(file: Readable) -> bool:
    """Return whether a file object can seek. `SpooledTemporaryFile` has no `seekable` before Python 3.11."""
    return file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek")


def is_pipe(source: Source) -> bool:
    """Return whether a source can be read only once. A path is not opened: that would end its writer."""
    if not isinstance(source, (str, os.PathLike)):
        return not can_seek(source)
    path = _checked_path(source)
    return path.exists() and not path.is_file() and not path.is_dir()


def source_name(source: Source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    name = getattr(source, "name", "the stream")
    return "standard input" if name in (0, "<stdin>") else str(name)


def check_file(file: Any, name: str) -> None:
    """Raise `AudioError` for a file object that is closed, not for reading, or opened in text mode."""
    try:
        nothing = file.read(0)
    except (AttributeError, OSError, TypeError, ValueError) as error:  # ValueError: it is closed
        raise AudioError(f"{name}: cannot be read: {error}: expected a path or an open binary file object") from error
    if not isinstance(nothing, (bytes, bytearray, memoryview)):
        raise AudioError(f"{name}: the file is not in binary mode: open it in mode 'rb'")


def _checked_path(source: str | os.PathLike[str]) -> Path:
    """Return a path that the system can look up. Raises `AudioError`."""
    path = Path(source)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = error.strerror if isinstance(error, OSError) else error
        raise AudioError(f"{str(path)!r:.80}: cannot be read: {reason}") from error
    return path


@contextmanager
def opened(source: Source, name: str) -> Iterator[BinaryIO]:
    if not isinstance(source, (str, os.PathLike)):
        check_file(source, name)
        yield source
        return
    path = _checked_path(source)
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
