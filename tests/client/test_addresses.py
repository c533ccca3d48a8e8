"""Addresses of streams, as the client writes them."""

from __future__ import annotations

import pytest

from slipstream.client.addresses import ServerError, stream_address
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


def test_another_scheme_is_named() -> None:
    with pytest.raises(ServerError, match=r"ftp://example\.org: expected an address that begins with http://"):
        stream_address("ftp://example.org", 16_000, None, None, None)


def test_hints_that_do_not_fit_into_an_address_are_refused_before_a_connection() -> None:
    names = [f"Ngaio Marsh {number}" for number in range(1000)]
    assert "Marsh" in stream_address("http://example.org", 16_000, None, None, Hints(keywords=names[:250]))
    with pytest.raises(ServerError, match="a server takes 8,000: give fewer keywords or a shorter prompt") as caught:
        stream_address("http://example.org", 16_000, None, None, Hints(keywords=names))
    assert caught.value.code == 431
