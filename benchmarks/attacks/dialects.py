"""Attacks over every dialect: floods of audio and of commands, and clients that read nothing."""

from __future__ import annotations

import time
from functools import partial
from urllib.parse import urlsplit

import numpy as np
from benchmarks.attacks import ATTACKS, TEXT, Attack, Target, frame
from benchmarks.dialects import CLIENTS, Message

from slipstream.dialects import DIALECTS

SECONDS = 8.0
"""Audio in one message of a flood."""


def framed(message: Message) -> bytes:
    """A whole frame with a message."""
    return frame(message.encode(), TEXT) if isinstance(message, str) else frame(message)


def headers(name: str) -> list[str]:
    """The header lines of a dialect's client."""
    return [f"{key}: {value}" for key, value in CLIENTS[name].headers.items()]


def audio(name: str, target: Target) -> None:
    """Long messages of audio, as fast as the server takes them."""
    client = CLIENTS[name]()
    begin = b"".join(map(framed, client.begin()))
    message = b"".join(map(framed, client.audio(np.full(round(SECONDS * client.rate), 0.01, np.float32))))
    with target.websocket(client.path, *headers(name)) as socket:
        target.discard(socket)
        socket.sendall(begin)
        while target.running:
            socket.sendall(message)


def commands(name: str, target: Target) -> None:
    """Short connections that begin, send a frame of audio, end, and do not wait for the answer."""
    client = CLIENTS[name]()
    pcm_S = np.full(client.rate // 12, 0.01, np.float32)
    data = b"".join(map(framed, [*client.begin(), *client.audio(pcm_S), *client.finish()]))
    while target.running:
        with target.websocket(client.path, *headers(name)) as socket:
            socket.sendall(data)


def unread(name: str, target: Target) -> None:
    """Ten clients that send speech in real time and read nothing."""
    client = CLIENTS[name]()
    pcm_S = np.full(client.rate // 10, 0.01, np.float32)
    message = b"".join(map(framed, client.audio(pcm_S)))
    sockets = [target.websocket(client.path, *headers(name)) for _ in range(10)]
    for socket in sockets:
        socket.sendall(b"".join(map(framed, client.begin())))
    while target.running:
        for socket in sockets:
            socket.sendall(message)
        time.sleep(0.1)


for _name, _client in CLIENTS.items():
    if urlsplit(_client.path).path in DIALECTS:
        for _attack in (audio, commands, unread):
            _run: Attack = partial(_attack, _name)
            ATTACKS[f"{_name}-{_attack.__name__}"] = _run
