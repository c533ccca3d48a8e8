"""Announce a service on the local network by multicast DNS, so that Home Assistant finds it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING

from slipstream.errors import ConfigError

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncZeroconf

WYOMING = "_wyoming._tcp.local."


class Announcement:
    """One service on the local network.

    Args:
        name: What other machines call it.
        host: Address of its listener; one for all addresses announces all that other machines may reach.
        port: Of its listener.
        interfaces: Addresses of the interfaces on which it is announced. Default: all.

    Raises:
        ConfigError: Other machines cannot reach the address.
    """

    def __init__(self, name: str, host: str, port: int, *, interfaces: Sequence[str] | None = None) -> None:
        from ifaddr import get_adapters
        from zeroconf import ServiceInfo

        address = ipaddress.ip_address(host)
        all_addresses = [str(one.ip) for adapter in get_adapters() for one in adapter.ips if one.is_IPv4]
        found = [one for one in all_addresses if not ipaddress.ip_address(one).is_loopback]
        addresses = found if address.is_unspecified else [host]
        if not addresses or (address.is_loopback and interfaces is None):
            raise ConfigError(f"--zeroconf: other machines cannot reach {host}: listen on 0.0.0.0")
        self._interfaces = interfaces
        self._info = ServiceInfo(WYOMING, f"{name}.{WYOMING}", port=port, parsed_addresses=addresses)
        self._zeroconf: AsyncZeroconf | None = None

    async def start(self) -> None:
        """Begin to answer questions about the service. Another service of this name gets a number."""
        from zeroconf import InterfaceChoice
        from zeroconf.asyncio import AsyncZeroconf

        self._zeroconf = AsyncZeroconf(interfaces=list(self._interfaces or []) or InterfaceChoice.All)
        await self._zeroconf.async_register_service(self._info, allow_name_change=True)

    async def stop(self) -> None:
        """Announce its end. A second call does nothing."""
        zeroconf, self._zeroconf = self._zeroconf, None
        if zeroconf is not None:
            await zeroconf.async_unregister_all_services()
            await zeroconf.async_close()
