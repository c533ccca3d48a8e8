"""Forms: any cut of the body gives the same file and fields, and damaged bodies give clean errors."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.uploads.forms import BOUNDARY, CONTENT_TYPE, END, form, part

from slipstream.server.uploads import multipart
from slipstream.server.uploads.multipart import MAX_FIELD_BYTES, MAX_PARTS, MultipartForm
from slipstream.server.uploads.protocol import UploadError

FIELDS = [("model", "tiny"), ("prompt", "Grüße,\r\n--" + BOUNDARY[:-1]), ("keywords[]", "a"), ("keywords[]", "b")]
FILE = bytes(range(256)) * 3 + f"\r\n--{BOUNDARY[:-2]}\r\n".encode() + b"\r\n\r\n--\r\n"


def parsed(body: bytes, cuts: list[int] | None = None) -> tuple[list[tuple[str, str]], bytes]:
    reader = MultipartForm(CONTENT_TYPE)
    borders = [0, *sorted(cuts or []), len(body)]
    file = b"".join(reader.receive(body[start:end]) for start, end in itertools.pairwise(borders))
    reader.end()
    return reader.fields, file


@given(st.lists(st.integers(0, len(form(FIELDS, FILE)))))
def test_the_body_may_be_cut_anywhere(cuts: list[int]) -> None:
    assert parsed(form(FIELDS, FILE), cuts) == (FIELDS, FILE)


def test_the_file_may_come_first_and_be_empty() -> None:
    body = part("file", b"", "x.wav") + part("model", "tiny") + END
    assert parsed(body) == ([("model", "tiny")], b"")


@given(st.data())
def test_damaged_bodies_give_clean_errors(data: st.DataObject) -> None:
    body = bytearray(form(FIELDS, b"RIFF"))
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(body)))
        size = data.draw(st.integers(0, 40))
        kind = data.draw(st.sampled_from(["insert", "delete", "double", "cut"]))
        if kind == "insert":
            body[place:place] = data.draw(st.binary(max_size=8) | st.sampled_from([b"\r\n", b"--", END, b'";']))
        elif kind == "delete":
            del body[place : place + size]
        elif kind == "double":
            body[place:place] = body[place : place + size]
        else:
            del body[place:]
    try:
        fields, file = parsed(bytes(body), data.draw(st.lists(st.integers(0, len(body)), max_size=5)))
    except UploadError:
        return
    assert len(file) + sum(len(value) for _, value in fields) <= len(body)


@pytest.mark.parametrize(
    ("content_type", "wrong"),
    [
        ("", "the content type is '': expected multipart/form-data with a boundary"),
        ("application/json", "the content type is 'application/json': expected multipart/form-data with a boundary"),
        ("multipart/form-data", "the content type is 'multipart/form-data': expected"),
        (f"multipart/form-data; boundary={'x' * 300}", "the content type has an invalid boundary"),
    ],
)
def test_content_types(content_type: str, wrong: str) -> None:
    with pytest.raises(UploadError) as raised:
        MultipartForm(content_type)
    assert raised.value.status == 400
    assert raised.value.reason.startswith(wrong)


@pytest.mark.parametrize(
    ("body", "status", "wrong"),
    [
        (b"", 400, "the body ends before its last boundary"),
        (form(FIELDS, FILE)[:-20], 400, "the body ends before its last boundary"),
        (b"model=tiny", 400, "the body is not multipart/form-data as its header states"),
        (part("file", b"a", "a") + form([], b"b"), 400, "the body has more than one file"),
        (
            form([("model", "")]).replace(b"form-data;", b"attachment;"),
            400,
            "a part of the body has no Content-Disposi",
        ),
        (form([("model", "")]).replace(b"name=", b"size="), 400, "a part of the body has no Content-Disposition"),
        (part("model", b"\xff") + END, 400, "'model' is not text in UTF-8"),
        (form([("x", "")] * (MAX_PARTS + 1)), 413, f"the body has more than {MAX_PARTS} parts"),
        (
            form([("prompt", "x" * (MAX_FIELD_BYTES + 1))]),
            413,
            f"the fields of the body have more than {MAX_FIELD_BYTES}",
        ),
        (
            form([]).replace(END, part("a", "b").replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 5000 + b"\r\n\r\n")),
            400,
            "the body is",
        ),
        (
            part("a", "b").replace(b"\r\n\r\n", b"\r\nX: y" * 3 + (b"\r\nY: " + b"y" * 4_100) * 2 + b"\r\n\r\n"),
            413,
            "the head",
        ),
        (part("a", "b").replace(b"\r\n\r\n", b"\r\nX: y" * 20 + b"\r\n\r\n") + END, 400, "the body is not multipart"),
    ],
)
def test_bodies_that_are_refused(body: bytes, status: int, wrong: str) -> None:
    with pytest.raises(UploadError) as raised:
        parsed(body)
    assert (raised.value.status, raised.value.reason[: len(wrong)]) == (status, wrong)


@pytest.mark.parametrize("filename", ["../../etc/passwd", "C:\\x\\..\\y.wav", "a\0b", "x" * 3000])
def test_the_name_of_the_file_has_no_effect(filename: str) -> None:
    assert parsed(form([("model", "tiny")], b"RIFF", filename))[1] == b"RIFF"


@pytest.mark.parametrize(
    ("begun", "wrong"),
    [(f"--{BOUNDARY}\r\nX: ".encode(), "Maximum header size"), (part("prompt", "")[:-2], "more than 9000 bytes")],
)
def test_a_form_without_an_end_is_refused_early(begun: bytes, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "MAX_FIELD_BYTES", 9_000)
    reader = MultipartForm(CONTENT_TYPE)
    reader.receive(begun)
    taken = 0

    def endless() -> None:
        nonlocal taken
        while True:
            reader.receive(b"y")
            taken += 1

    with pytest.raises(UploadError, match=wrong):
        endless()
    assert taken < 10_000
