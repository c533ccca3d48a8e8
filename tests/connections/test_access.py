"""Keys, Origin and Host."""

from __future__ import annotations

import time

import pytest
from starlette.requests import HTTPConnection

from slipstream.connections.access import Access, Client, Refused
from slipstream.connections.keys import Key, KeyRing
from slipstream.errors import ConfigError

KEYS = KeyRing.of(["secret"])
SOON = int(time.time()) + 24 * 3600


def request_of(query: str = "", **headers: str) -> HTTPConnection:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return HTTPConnection({"type": "websocket", "headers": raw, "query_string": query.encode()})


def status(access: Access, query: str = "", **headers: str) -> int | None:
    try:
        access.check(request_of(query, **headers))
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


def bearer(secret: str) -> HTTPConnection:
    return request_of(host="localhost", authorization=f"Bearer {secret}")


def test_a_client_secret_has_the_key_and_a_session() -> None:
    access, desk = Access("0.0.0.0", KEYS), KEYS.find("secret")
    secret = access.client_secret(Client(key=desk), SOON, {"include": []})
    offered = request_of(host="localhost", sec_websocket_protocol=f"realtime, openai-insecure-api-key.{secret}")
    for request in (bearer(secret), offered):
        client = access.check(request, secrets=True)
        assert (client.key, client.session) == (desk, {"include": []})
    with pytest.raises(Refused, match="no valid key") as refused:  # at any other address
        access.check(bearer(secret))
    assert refused.value.status == 401
    assert access.check(bearer("secret"), secrets=True) == Client(key=desk)


def test_a_client_secret_that_is_forged_or_has_expired_is_refused_as_a_wrong_key_is() -> None:
    access, other = Access("0.0.0.0", KEYS), Access("0.0.0.0", KeyRing.of(["another"]))
    forged = other.client_secret(Client(key=Key("key-1", b"")), SOON, {})
    expired = access.client_secret(Client(key=KEYS.find("secret")), int(time.time()) - 1, {})
    answers = []
    for wrong in ("wrong", "ek_", "ek_wrong", forged, expired + "A", expired):
        with pytest.raises(Refused) as refused:
            access.check(bearer(wrong), secrets=True)
        answers.append((refused.value.status, refused.value.headers, refused.value.reason))
    *wrong_keys, (code, headers, reason) = answers
    assert len(set(map(str, wrong_keys))) == 1
    assert (code, headers) == wrong_keys[0][:2] == (401, {"www-authenticate": "Bearer"})
    assert "has expired" in reason


def test_without_keys_a_client_secret_still_brings_its_session_and_expires() -> None:
    access = Access("127.0.0.1")
    secret = access.client_secret(Client(), SOON, {"include": []})
    other_process = Access("127.0.0.1")
    assert other_process.check(bearer(secret), secrets=True) == Client(session={"include": []})
    assert other_process.check(bearer(secret)).session is None
    assert other_process.check(bearer("ek_of_another_server"), secrets=True) == Client()
    with pytest.raises(Refused, match="has expired"):
        access.check(bearer(access.client_secret(Client(), 1, {})), secrets=True)
