"""Frames, wherever the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from slipstream.connections.frames import FrameCutter, FrameHead, message_frame

FRAMES = st.lists(
    st.tuples(
        st.sampled_from([Opcode.BINARY, Opcode.TEXT, Opcode.CONT]),
        st.sampled_from([0, 1, 125, 126, 70_000]),
        st.booleans(),
    ),
    max_size=4,
)


@given(FRAMES, st.sampled_from([1, 2, 3, 1000, 1_000_000]), st.booleans())
def test_frames_wherever_they_are_cut(frames: list[tuple[Opcode, int, bool]], size: int, mask: bool) -> None:
    written = [Frame(opcode, bytes(length), fin).serialize(mask=mask) for opcode, length, fin in frames]
    data, cutter = b"".join(written), FrameCutter()
    heads: list[FrameHead] = []
    parts: list[bytes] = []
    for start in range(0, len(data), size):
        cutter.push(data[start : start + size])
        while (part := cutter.next()) is not None:
            if part.head is None:
                parts[-1] += part.data
            else:
                heads.append(part.head)
                parts.append(part.data)
    assert parts == written
    assert heads == [FrameHead(fin, opcode, length) for opcode, length, fin in frames]


@pytest.mark.parametrize("head", [b"", b"\x82", b"\x82\xfe\x01", b"\x82\x85abc"])
def test_half_a_header_waits(head: bytes) -> None:
    cutter = FrameCutter()
    cutter.push(head)
    assert cutter.next() is None


@given(
    st.sampled_from([Opcode.BINARY, Opcode.TEXT, Opcode.CONT, Opcode.PING]),
    st.one_of(
        st.binary(max_size=125), st.integers(126, 70_000).map(lambda size: bytes(range(256)) * (size // 256 + 1))
    ),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 0x40, 0x20, 0x10]),
    st.booleans(),
)
def test_a_whole_message_is_one_masked_frame_without_extensions(
    opcode: Opcode, payload: bytes, fin: bool, mask: bool, extension: int, whole: bool
) -> None:
    payload = payload[:125] if opcode is Opcode.PING else payload
    data = bytearray(Frame(opcode, payload, fin or opcode is Opcode.PING).serialize(mask=mask))
    data[0] |= extension
    cutter = FrameCutter()
    cutter.push(bytes(data if whole else data[:-1]))
    part = cutter.next()
    # Without its last byte, a short frame may be an incomplete header.
    message = None if part is None else part.message
    passes = whole and fin and mask and not extension and opcode in (Opcode.BINARY, Opcode.TEXT)
    assert message == (payload if passes else None)


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65_535, 65_536, 70_000])
def test_a_message_is_written_as_the_protocol_writes_it(length: int) -> None:
    assert message_frame(b"\xff" * length) == Frame(Opcode.BINARY, b"\xff" * length).serialize(mask=False)
    text = "é" * (length // 2) + "e" * (length % 2)
    assert message_frame(text) == Frame(Opcode.TEXT, text.encode()).serialize(mask=False)


def test_a_frame_that_arrives_alone_is_not_copied() -> None:
    data = Frame(Opcode.BINARY, bytes(7689)).serialize(mask=True)
    cutter = FrameCutter()
    cutter.push(data)
    part = cutter.next()
    assert part is not None
    assert part.data is data
    assert cutter.next() is None
