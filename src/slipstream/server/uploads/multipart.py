"""Bodies in `multipart/form-data` (RFC 7578), parsed as they arrive."""

from __future__ import annotations

import logging

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from slipstream.server.uploads.protocol import UploadError

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings repeat the errors that it raises
MAX_PARTS = 1_000
MAX_HEAD_BYTES = 8 << 10
"""Of the head of one part."""
MAX_FIELD_BYTES = 4 << 20
"""Of all fields together, with their names. Four samples of speakers' voices are the largest that clients send."""
FILE = "file"


class MultipartForm:
    """Separates the file of a form from its other fields. The file's own name is not used.

    Args:
        content_type: Of the request.

    Raises:
        UploadError: 400 or 413, here and in all methods.
    """

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            what = f"the content type is {content_type!r:.80}"
            raise UploadError(400, f"{what}: expected multipart/form-data with a boundary")
        self.fields: list[tuple[str, str]] = []
        """Names and values of the fields that are complete, in their order."""
        self.has_file = False
        """Whether the file has begun."""
        self._file: list[bytes] = []
        self._header, self._value = bytearray(), bytearray()
        self._name = self._disposition = b""
        self._parts = self._head_bytes = self._field_bytes = 0
        self._complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_header,
                    "on_header_value": self._add_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise UploadError(400, f"the content type has an invalid boundary: {error}") from error

    def receive(self, data: bytes) -> bytes:
        """Take the next bytes of the body. Returns those of the file in them."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise UploadError(400, f"the body is not multipart/form-data as its header states: {error}") from error
        file = b"".join(self._file)
        self._file.clear()
        return file

    def end(self) -> None:
        """Take the end of the body."""
        if not self._complete:
            raise UploadError(400, "the body ends before its last boundary")

    # ------------------------------------------------------------------------------------------ called by the parser

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise UploadError(413, f"the body has more than {MAX_PARTS} parts")
        self._head_bytes, self._disposition = 0, b""
        self._clear()

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._count_head(end - start)
        self._header += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_head(end - start)
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._clear()

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._disposition.decode("latin-1"))
        if kind != b"form-data" or b"name" not in options:
            raise UploadError(400, "a part of the body has no Content-Disposition: form-data with a name")
        self._name = options[b"name"]
        self._count(len(self._name))
        if self._name == FILE.encode():
            if self.has_file:
                raise UploadError(400, "the body has more than one file", FILE)
            self.has_file = True

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == FILE.encode():
            self._file.append(data[start:end])
        else:
            self._count(end - start)
            self._value += data[start:end]

    def _end_part(self) -> None:
        if self._name != FILE.encode():
            name = self._name.decode(errors="replace")
            try:
                self.fields.append((name, self._value.decode()))
            except UnicodeDecodeError as error:
                raise UploadError(400, f"{name!r:.80} is not text in UTF-8", name[:80]) from error
        self._clear()

    def _end(self) -> None:
        self._complete = True

    def _clear(self) -> None:
        self._header.clear()
        self._value.clear()

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise UploadError(413, f"the head of a part has more than {MAX_HEAD_BYTES} bytes")

    def _count(self, size: int) -> None:
        self._field_bytes += size
        if self._field_bytes > MAX_FIELD_BYTES:
            raise UploadError(413, f"the fields of the body have more than {MAX_FIELD_BYTES} bytes")
