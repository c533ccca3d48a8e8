"""Messages between a parent and its processes: one JSON object per line, on a socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol, TypeAlias

from slipstream.engine.remote.memory import create_file

LINE_BYTES = 1 << 24
_OF_THE_PARENT = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

Message: TypeAlias = dict[str, Any]


class Job(Protocol):
    """What a process does. It can be pickled."""

    def run(self, end: socket.socket) -> None:
        """Do it. `end`: the link to the parent, which closes when the parent is gone."""
        ...


class Link:
    """One end of the connection between a parent and a process, for its event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, end: socket.socket) -> Link:
        """Take over one end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=LINE_BYTES))

    def send(self, message: Message) -> None:
        """Send a message. Does nothing when the other end is gone."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Yield messages until the other end is gone."""
        while True:
            try:
                line = await self._reader.readline()
            except (OSError, ValueError):  # ValueError: longer than `LINE_BYTES`
                return
            if not line:
                return
            yield json.loads(line)

    async def drain(self) -> None:
        """Wait until the messages are sent."""
        with contextlib.suppress(OSError):
            await self._writer.drain()

    def close(self) -> None:
        """Close this end."""
        self._writer.close()


def encode(message: Message) -> bytes:
    """Return the line of a message."""
    return json.dumps(message).encode() + b"\n"


def start(job: Job, descriptors: Sequence[int] = ()) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a process.

    Args:
        job: What it does.
        descriptors: File descriptors that it gets, with the same numbers.

    Returns:
        The process, and the parent's end of the link.
    """
    ours, theirs = socket.socketpair()
    file = create_file()
    try:
        with os.fdopen(os.dup(file), "wb") as pickled:
            pickle.dump(sys.path, pickled)
            pickle.dump(job, pickled)
        command = [sys.executable, "-m", __package__, str(file), str(theirs.fileno())]
        environment = {name: value for name, value in os.environ.items() if name not in _OF_THE_PARENT}
        passed = [file, theirs.fileno(), *descriptors]
        return subprocess.Popen(command, pass_fds=passed, env=environment, stdin=subprocess.DEVNULL), ours
    except BaseException:
        ours.close()
        raise
    finally:
        os.close(file)
        theirs.close()
