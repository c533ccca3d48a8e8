"""A service is announced on the local network, here on the loopback interface only."""

from __future__ import annotations

import asyncio

import pytest

from slipstream.errors import ConfigError
from slipstream.server.discovery import WYOMING, Announcement

pytest.importorskip("zeroconf", reason="needs the extra wyoming")


def test_an_announced_service_is_found_and_its_end_too() -> None:
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

    async def find() -> tuple[AsyncServiceInfo, bool, bool]:
        announcement = Announcement("slipstream-test", "127.0.0.1", 10300, interfaces=["127.0.0.1"])
        async with AsyncZeroconf(interfaces=["127.0.0.1"]) as browser:
            await announcement.start()
            info = AsyncServiceInfo(WYOMING, f"slipstream-test.{WYOMING}")
            found = await info.async_request(browser.zeroconf, 5000)
            await announcement.stop()
            await announcement.stop()  # does nothing
            gone = AsyncServiceInfo(WYOMING, f"slipstream-test.{WYOMING}")
        async with AsyncZeroconf(interfaces=["127.0.0.1"]) as browser:
            return info, found, await gone.async_request(browser.zeroconf, 300)

    info, found, found_later = asyncio.run(find())
    assert (found, found_later) == (True, False)
    assert (info.port, info.parsed_addresses()) == (10300, ["127.0.0.1"])


def test_an_address_that_others_cannot_reach_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"--zeroconf: other machines cannot reach 127.0.0.1: listen on 0.0.0.0"):
        Announcement("x", "127.0.0.1", 10300)
