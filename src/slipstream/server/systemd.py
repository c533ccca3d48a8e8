"""Notifications to systemd: started, reloading, alive, stopping (sd_notify(3)). Elsewhere they do nothing."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress


def notify(*assignments: str) -> None:
    """Send assignments such as `READY=1` to the socket in `NOTIFY_SOCKET`, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)  # a manager that does not read must not stop the event loop
        sender.connect("\0" + address[1:] if address[0] == "@" else address)  # @: an abstract socket
        sender.send("\n".join(assignments).encode())


def notify_reloading() -> None:
    """Report that the configuration is being reloaded; `READY=1` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def watchdog_seconds() -> float | None:
    """Return how often systemd wants to see `WATCHDOG=1`: half of its limit, as it advises. None for never."""
    limit, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not limit.isdecimal() or process not in ("", str(os.getpid())):
        return None
    return int(limit) / 2e6
