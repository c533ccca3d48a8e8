"""The systemd unit against the server that it starts."""

from __future__ import annotations

import configparser
from pathlib import Path

from slipstream.connections.acceptor import RESERVED_DESCRIPTORS
from slipstream.connections.limits import Limits

FOLDER = Path(__file__).parents[2] / "deploy"


def test_the_unit_requests_the_notifications_that_the_server_sends() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(FOLDER / "slipstream.service")
    service = unit["Service"]
    assert (service["Type"], service["Restart"]) == ("notify", "on-failure")
    assert float(service["WatchdogSec"]) > 10 * Limits().step_seconds
    assert float(service["TimeoutStopSec"]) > Limits().drain_seconds
    assert int(service["LimitNOFILE"]) >= Limits().connections + RESERVED_DESCRIPTORS
    assert "HUP" in service["ExecReload"]
