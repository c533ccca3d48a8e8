"""WAV files one after the other in one file or pipe, as `cat a.wav b.wav` writes them. FFmpeg reads only the first."""

from __future__ import annotations

from collections.abc import Iterator

from slipstream.audio.source import Readable, can_seek
from slipstream.audio.truncation import LAST_BYTES, wav_seconds

_HEADER_BYTES = 12  # "RIFF", four bytes of size, "WAVE"
_READ_BYTES = 1 << 16


def wav_parts(file: Readable, name: str) -> Iterator[WavPart]:
    """Yield the parts of a file, each from one WAV header to the next. A file of another format is one part."""
    part: WavPart | None = WavPart(file, name)
    while part is not None:
        yield part
        part = part.next()


class WavPart:
    """One WAV file within a file, as a file object that ends where the next one begins."""

    def __init__(self, file: Readable, name: str, start: int = 0, ahead: bytes = b"") -> None:
        self.name = name
        self._file, self._start = file, start
        self._ahead = ahead  # read from the file, but not from here
        self._position = 0
        self._end: int | None = None
        self._is_wav = False
        self.last = b""
        """The bytes before the furthest position that was read: `LAST_BYTES` or more, if the file has as many."""
        self._furthest = 0
        self.declared_seconds: float | None = None
        """What a WAV header states about the length of its audio; None without one."""

    def read(self, size: int) -> bytes:
        if self._position == self._end:
            return b""
        more = True
        while len(self._ahead) < _HEADER_BYTES and more:
            data = self._file.read(size)
            self._ahead += data
            more = bool(data)
        if self._position == 0:
            self._is_wav = _find_header(self._ahead[:_HEADER_BYTES], 0) == 0
            self.declared_seconds = wav_seconds(self._ahead) if self._is_wav else None
        ready, ends = len(self._ahead), False
        if self._is_wav:
            header = _find_header(self._ahead, 1 if self._position == 0 else 0)
            ends = header is not None
            # The last bytes may be the beginning of a header.
            ready = header if header is not None else ready - (_HEADER_BYTES - 1) * more
        data, self._ahead = self._ahead[: min(size, ready)], self._ahead[min(size, ready) :]
        self._position += len(data)
        self._keep_last(data)
        if ends and len(data) == ready:
            self._end = self._position
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 1:
            offset += self._position
        elif whence == 2:
            offset += self._file.seek(0, 2) - self._start if self._end is None else self._end
        if offset < 0:  # FFmpeg follows a wrong pointer
            return -1
        self._file.seek(self._start + offset)
        self._ahead, self._position = b"", offset
        return offset

    def _keep_last(self, data: bytes) -> None:
        if self._position > self._furthest:  # FFmpeg may read the end first, and never again
            known = len(self.last) - (self._furthest - (self._position - len(data)))
            self.last = (self.last[:known] if 0 <= known <= len(self.last) else b"")[-LAST_BYTES:] + data
            self._furthest = self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return can_seek(self._file)

    def next(self) -> WavPart | None:
        """Read to the end of this part. Returns the next one, if any."""
        while self._is_wav and self.read(_READ_BYTES):
            pass
        if self._end is None:
            return None
        start = self._start + self._end
        if can_seek(self._file):
            self._file.seek(start)
            self._ahead = b""
        return WavPart(self._file, self.name, start, self._ahead)


def _find_header(data: bytes, start: int) -> int | None:
    found = data.find(b"WAVE", start + 8)
    while found >= 0:
        if data[found - 8 : found - 4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
            return found - 8
        found = data.find(b"WAVE", found + 1)
    return None
