"""Frames, wherever the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from slipstream.connections.frames import FrameCutter, FrameHead

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
