"""Keys, Origin and Host."""

from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from slipstream.connections.access import Access, Client, Refused
from slipstream.connections.keys import Key, KeyRing
from slipstream.errors import ConfigError

KEYS = KeyRing.of(["secret"])


def status(access: Access, query: str = "", **headers: str) -> int | None:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    request = HTTPConnection({"type": "websocket", "headers": raw, "query_string": query.encode()})
    try:
        access.check(request)
    except Refused as refused:
        return refused.status
    return None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])
def test_without_keys_only_loopback_is_served(host: str) -> None:
    with pytest.raises(ConfigError, match="needs keys"):
        Access(host)
    Access(host, KEYS)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_needs_no_key(host: str) -> None:
    assert status(Access(host), host="localhost:8080") is None
    assert status(Access(host), host="[::1]:8080") is None


@pytest.mark.parametrize("host", ["evil.example:8080", "localhost.evil.example", "", "192.168.1.4"])
def test_without_keys_other_names_are_refused(host: str) -> None:
    assert status(Access("127.0.0.1"), host=host) == 421


def test_a_key_comes_in_the_header_or_the_query() -> None:
    access = Access("0.0.0.0", KEYS)
    assert status(access, host="example.org") == 401
    assert status(access, host="example.org", kyutai_api_key="secret") is None
    assert status(access, "auth_id=secret", host="example.org") is None
    assert status(access, "auth_id=other", host="example.org") == 401
    assert status(access, "auth_id=secret", host="example.org", kyutai_api_key="wrong") == 401


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "Token secret", "TOKEN  secret"])
def test_a_key_comes_in_the_authorization_header(header: str) -> None:
    assert status(Access("0.0.0.0", KEYS), host="example.org", authorization=header) is None


@pytest.mark.parametrize("header", ["Bearer wrong", "Bearer", "Basic secret", "secret", ""])
def test_other_authorization_is_refused(header: str) -> None:
    assert status(Access("0.0.0.0", KEYS), host="example.org", authorization=header) == 401


@pytest.mark.parametrize("host", ["[", "[::1", "a b", "user@localhost", "localhost:x", "localhost:999999", "\xff"])
def test_malformed_hosts(host: str) -> None:
    assert status(Access("127.0.0.1"), host=host) == 400
    assert status(Access("0.0.0.0", KEYS), host=host, kyutai_api_key="secret") == 400


@pytest.mark.parametrize("origin", ["http://[", "http://a@b", "http://a/b", "a", "", "http://a:b", "\xff"])
def test_malformed_origins(origin: str) -> None:
    assert status(Access("127.0.0.1"), host="localhost:8080", origin=origin) == 400


def test_a_key_limits_its_open_streams() -> None:
    access = Access("0.0.0.0", KEYS)
    client, other = Client(key=Key("desk", b"", streams=2)), Client(key=Key("phone", b""))
    access.enter(client)
    access.enter(client)
    with pytest.raises(Refused, match="2 of 2 streams open") as refused:
        access.enter(client)
    assert refused.value.status == 429
    access.enter(other)
    access.leave(client)
    access.enter(client)


def test_a_key_limits_what_starts_within_a_minute() -> None:
    access, client = Access("0.0.0.0", KEYS), Client(key=Key("desk", b"", per_minute=2))
    access.enter(client, now=0.0)
    access.enter(client, now=20.0)
    for _ in range(3):  # a refusal does not count
        with pytest.raises(Refused, match="at most 2 streams per minute") as refused:
            access.enter(client, now=21.0)
        assert refused.value.headers == {"retry-after": "39"}
    access.enter(client, now=60.0)
    with pytest.raises(Refused):
        access.enter(client, now=79.0)
    access.enter(client, now=80.0)


def test_only_pages_of_this_server_and_those_allowed_may_connect() -> None:
    access = Access("127.0.0.1", origins=["https://app.example"])
    assert status(access, host="localhost:8080", origin="http://localhost:8080") is None
    assert status(access, host="localhost:8080", origin="http://localhost:9090") == 403
    assert status(access, host="localhost:8080", origin="null") == 403
    assert status(access, host="localhost:8080", origin="https://app.example") is None
    assert status(access, host="localhost:8080", origin="https://evil.example") == 403
    assert status(Access("127.0.0.1", origins=["*"]), host="localhost:8080", origin="https://any.example") is None


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://app.example/page", ""])
def test_an_origin_that_no_page_has_is_refused(origin: str) -> None:
    Access("127.0.0.1", origins=["null", "http://[::1]:3000", "chrome-extension://abcdef"])
    with pytest.raises(ConfigError, match="expected \\*, or scheme://host:port without a path"):
        Access("127.0.0.1", origins=[origin])
