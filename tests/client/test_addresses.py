"""Addresses of streams, as the client writes them."""

from __future__ import annotations

import pytest

from slipstream.client.addresses import ServerError, find_replica, stream_address
from slipstream.hints import Hints


@pytest.mark.parametrize(
    ("url", "start"),
    [
        ("http://example.org", "ws://example.org/v1/stream?"),
        ("https://example.org/speech/", "wss://example.org/speech/v1/stream?"),
        ("127.0.0.1:8080", "ws://127.0.0.1:8080/v1/stream?"),
    ],
)
def test_the_scheme_and_the_path_are_those_of_a_websocket(url: str, start: str) -> None:
    assert stream_address(url, 16_000, None, None, None).startswith(start)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.org", "'ftp://example.org': expected an address with http://"),
        ("", "'': expected an address with http://"),
        ("http://:8080", "'http://:8080': expected an address with http://"),
        ("http://127.0.0.1:99999", "http://127.0.0.1:99999: Port out of range 0-65535"),
        ("http://[::1", r"http://\[::1: Invalid IPv6 URL"),
    ],
)
def test_what_is_no_address_of_a_server_is_refused_for_good(url: str, message: str) -> None:
    for address in (lambda: stream_address(url, 16_000, None, None, None), lambda: find_replica(url)):
        with pytest.raises(ServerError, match=message) as caught:
            address()
        assert caught.value.code == 400


def test_hints_that_do_not_fit_into_an_address_are_refused_before_a_connection() -> None:
    names = [f"Ngaio Marsh {number}" for number in range(1000)]
    assert "Marsh" in stream_address("http://example.org", 16_000, None, None, Hints(keywords=names[:250]))
    with pytest.raises(ServerError, match="a server takes 8,000: give fewer keywords or a shorter prompt") as caught:
        stream_address("http://example.org", 16_000, None, None, Hints(keywords=names))
    assert caught.value.code == 431
