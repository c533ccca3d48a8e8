"""Notifications to a stand-in for systemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from slipstream.server import systemd


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield receiver


def test_assignments_arrive_in_one_datagram(manager: socket.socket) -> None:
    systemd.notify("WATCHDOG=1", "STATUS=3 of 8 slots in use")
    assert manager.recv(1000) == b"WATCHDOG=1\nSTATUS=3 of 8 slots in use"
    systemd.notify_reloading()
    assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"slipstream-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        receiver.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        systemd.notify("READY=1")
        assert receiver.recv(1000) == b"READY=1"


@pytest.mark.parametrize("address", ["", "vsock:2:1", "/nowhere/notify"])
def test_nothing_is_sent_without_a_socket(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.notify("READY=1")


@pytest.mark.parametrize(
    ("limit", "process", "seconds"),
    [("30000000", "", 15.0), ("30000000", str(os.getpid()), 15.0), ("30000000", "1", None), ("", "", None)],
    ids=["any-process", "this-process", "another-process", "unset"],
)
def test_the_watchdog_is_notified_at_half_of_its_limit(
    limit: str, process: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", limit)
    monkeypatch.setenv("WATCHDOG_PID", process)
    assert systemd.watchdog_seconds() == seconds
