"""The file of an upload, which may be read while it arrives."""

from __future__ import annotations

import tempfile
import threading

_MEMORY_BYTES = 1 << 20


class Abandoned(Exception):
    """Reading a file that nobody needs any more."""


class Body:
    """A file that one thread writes and another reads, and which the decoder names in its errors.

    A file that is `live` is read while it arrives: it cannot seek, and `read` waits. Any other is read when it is
    complete. Its content is in memory up to 1 MiB, then in a temporary file.
    """

    name = "the upload"

    def __init__(self) -> None:
        self.live = False
        self._file = tempfile.SpooledTemporaryFile[bytes](max_size=_MEMORY_BYTES)
        self._changed = threading.Condition()
        self._size = self._position = 0
        self._complete = self._abandoned = False

    def write(self, data: bytes) -> None:
        """Append to the file."""
        with self._changed:
            self._file.seek(self._size)
            self._size += self._file.write(data)
            self._changed.notify_all()

    def complete(self) -> None:
        """Note that nothing follows."""
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Make every `read` fail from now on."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    # -------------------------------------------------------------------------------------------- what a decoder reads

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes. Waits until there is one, or the file is complete."""
        with self._changed:
            if size:
                self._changed.wait_for(lambda: self._size > self._position or self._complete or self._abandoned)
            if self._abandoned:
                raise Abandoned
            self._file.seek(self._position)
            data = self._file.read(size)
            self._position += len(data)
            return data

    def seekable(self) -> bool:
        return not self.live

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek as in any other file."""
        if self.live:
            raise OSError("a file that arrives cannot seek")
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()
