"""Attacks with the frames of WebSockets."""

from __future__ import annotations

from benchmarks.attacks import BINARY, CONTINUATION, PING, Target, attack, frame


@attack
def nothing(target: Target) -> None:
    """Do nothing: what the table shows then is the noise of the machine."""


@attack
def pings(target: Target) -> None:
    """Pings as fast as the server takes them."""
    target.flood(frame(b"", PING) * 20_000)


@attack
def pings_from_ten(target: Target) -> None:
    """The same from ten connections."""
    target.flood(frame(b"", PING) * 20_000, connections=10)


@attack
def unread_pongs(target: Target) -> None:
    """Pings with a payload, whose pongs are never read."""
    with target.websocket() as socket:
        while target.running:
            socket.sendall(frame(bytes(125), PING) * 1000)


@attack
def empty_fragments(target: Target) -> None:
    """A message of empty fragments without end."""
    with target.websocket() as socket:
        socket.sendall(frame(b"", BINARY, fin=False))
        while target.running:
            socket.sendall(frame(b"", CONTINUATION, fin=False) * 20_000)


@attack
def tiny_fragments(target: Target) -> None:
    """Messages of a thousand fragments of a byte."""
    start, rest = frame(b"\x82", BINARY, fin=False), frame(b"\0", CONTINUATION, fin=False) * 1000
    target.flood(start + rest + frame(b"", CONTINUATION))


@attack
def one_byte_at_a_time(target: Target) -> None:
    """A frame that arrives byte by byte."""
    with target.websocket() as socket:
        while target.running:
            for byte in frame(bytes(1000)):
                socket.send(bytes([byte]))
