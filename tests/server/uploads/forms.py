"""Bodies in multipart/form-data, as clients write them."""

from __future__ import annotations

from collections.abc import Iterable

BOUNDARY = "----boundary7MA4YWxk"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def part(name: str, value: str | bytes, filename: str | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    named = f'; filename="{filename}"' if filename is not None else ""
    kind = "\r\nContent-Type: application/octet-stream" if filename is not None else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}{kind}\r\n\r\n'
    return head.encode() + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def form(fields: Iterable[tuple[str, str]], file: bytes | None = None, filename: str = "talk.wav") -> bytes:
    """The fields in their order, then the file."""
    parts = [part(name, value) for name, value in fields]
    if file is not None:
        parts.append(part("file", file, filename))
    return b"".join([*parts, END])
