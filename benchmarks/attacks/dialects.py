"""Attacks over every dialect: floods of audio, of commands and of lists, and clients that read nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from functools import partial

import numpy as np
from benchmarks.attacks import ATTACKS, TEXT, Attack, Target, frame
from benchmarks.dialects import CLIENTS, Message

SECONDS = 8.0
"""Audio in one message of a flood."""


def connected(name: str, target: Target) -> socket.socket:
    """Open a connection of a dialect's client."""
    client = CLIENTS[name]
    if client.tcp:
        return target.connect(client.tcp)
    return target.websocket(client.path, *(f"{key}: {value}" for key, value in client.headers.items()))


def encoded(name: str, messages: Iterable[Message]) -> bytes:
    """Return messages as the connection carries them: in frames, or as they are on TCP."""
    return b"".join(
        frame(message.encode(), TEXT) if isinstance(message, str) else message if CLIENTS[name].tcp else frame(message)
        for message in messages
    )


def audio(name: str, target: Target) -> None:
    """Long messages of audio, as fast as the server takes them."""
    client = CLIENTS[name]()
    message = encoded(name, client.audio(np.full(round(SECONDS * client.rate), 0.01, np.float32)))
    with connected(name, target) as connection:
        target.discard(connection)
        connection.sendall(encoded(name, client.begin()))
        while target.running:
            connection.sendall(message)


def commands(name: str, target: Target) -> None:
    """Short connections that begin, send a frame of audio, end, and do not wait for the answer."""
    while target.running:
        client = CLIENTS[name]()
        pcm_S = np.full(client.rate // 12, 0.01, np.float32)
        with connected(name, target) as connection:
            connection.sendall(encoded(name, [*client.begin(), *client.audio(pcm_S), *client.finish()]))


def unread(name: str, target: Target) -> None:
    """Ten clients that send speech in real time and read nothing."""
    clients = [CLIENTS[name]() for _ in range(10)]
    message = encoded(name, clients[0].audio(np.full(clients[0].rate // 10, 0.01, np.float32)))
    connections = [connected(name, target) for _ in clients]
    for client, connection in zip(clients, connections, strict=True):
        connection.sendall(encoded(name, client.begin()))
    while target.running:
        for connection in connections:
            connection.sendall(message)
        time.sleep(0.1)


def lists(name: str, target: Target) -> None:
    """Messages of a million empty lists in JSON; on TCP, lines of ten thousand."""
    client = CLIENTS[name]
    values = "[]," * (10_000 if client.tcp else 1_300_000)
    text = f'{{"type": "describe", "event": "media", "x": [{values}0]}}\n'.encode()
    message = text if client.tcp else frame(text, TEXT)
    with connected(name, target) as connection:
        target.discard(connection)
        connection.sendall(encoded(name, client().begin()))
        while target.running:
            connection.sendall(message)


for _name in CLIENTS:
    for _attack in (audio, commands, unread, lists):
        _run: Attack = partial(_attack, _name)
        ATTACKS[f"{_name}-{_attack.__name__}"] = _run
