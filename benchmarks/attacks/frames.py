"""Attacks with frames and messages of WebSockets."""

from __future__ import annotations

from benchmarks.attacks import PING, Target, attack, frame


@attack
def pings(target: Target) -> None:
    """Send pings as fast as the socket takes them."""
    with target.websocket() as socket:
        while target.running:
            socket.sendall(frame(b"", PING) * 20_000)


@attack
def nothing(target: Target) -> None:
    """Do nothing: what the table shows then is the noise of the machine."""
