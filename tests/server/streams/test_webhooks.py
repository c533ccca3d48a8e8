"""Which webhooks are allowed."""

from __future__ import annotations

import pytest

from slipstream.errors import ConfigError
from slipstream.server.streams.webhooks import check_webhook, is_allowed

ALLOWED = ["https://example.com/hooks", "http://10.0.0.5:9000/"]


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://example.com/hooks", True),
        ("https://example.com/hooks/a?b=c", True),
        ("https://example.com:443/hooks/a", True),
        ("http://10.0.0.5:9000/x", True),
        ("http://example.com/hooks", False),
        ("https://example.com/hooksmith", False),
        ("https://example.com.evil.org/hooks", False),
        ("https://user@example.com/hooks", False),
        ("https://example.com@evil.org/hooks", False),
        ("https://example.com/hooks/../admin", False),
        ("https://example.com/hooks/%2e%2e/admin", False),
        ("https://example.com:8443/hooks", False),
        ("http://10.0.0.5/x", False),
        ("file:///etc/passwd", False),
        ("http://[::1", False),
        ("https://example.com/hooks/\r\nX: y", False),
        ("", False),
    ],
)
def test_only_addresses_at_or_below_an_allowed_one(url: str, allowed: bool) -> None:
    assert is_allowed(url, ALLOWED) is allowed
    assert not is_allowed(url, [])


def test_an_address_that_is_no_webhook_is_an_error() -> None:
    with pytest.raises(ConfigError, match="expected http://HOST/PATH or https://HOST/PATH"):
        check_webhook("example.com/hooks")
