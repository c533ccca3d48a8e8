"""Post messages to a webhook, in order and in batches."""

from __future__ import annotations

import asyncio
import http.client
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from urllib.parse import SplitResult, urlsplit

from slipstream.errors import ConfigError

TIMEOUT_SECONDS = 10.0
RETRY_SECONDS = (0.5, 2.0)
"""How long to wait after each failed attempt but the last."""
MOST_QUEUED = 1000
BATCH_MESSAGES = 100

logger = logging.getLogger(__name__)


class Webhook:
    """Posts messages as JSON arrays to one address, which has an answer of 2xx. Redirects are not followed.

    A batch that fails three times is dropped, and logged.

    Args:
        url: The address, which `is_allowed` has checked.
        messages: JSON texts to begin with.
    """

    def __init__(self, url: str, messages: Iterable[str] = ()) -> None:
        self._url = url
        self._queue: deque[str] = deque(maxlen=MOST_QUEUED)
        self._task: asyncio.Task[None] | None = None
        for message in messages:
            self.put(message)

    @property
    def busy(self) -> bool:
        """Whether messages are still to be posted."""
        return self._task is not None and not self._task.done()

    def put(self, message: str) -> None:
        """Post a message after those before it. Of more than `MOST_QUEUED`, the oldest are dropped."""
        self._queue.append(message)
        if not self.busy:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._queue:
            await asyncio.sleep(0)  # what is published together goes into one batch
            batch = [self._queue.popleft() for _ in range(min(BATCH_MESSAGES, len(self._queue)))]
            body = f"[{','.join(batch)}]".encode()
            problem = ""
            for wait in (*RETRY_SECONDS, None):
                problem = await asyncio.to_thread(_post, self._url, body)
                if not problem or wait is None:
                    break
                await asyncio.sleep(wait)
            if problem:
                host = urlsplit(self._url).hostname
                logger.warning("webhook failed", extra={"host": host, "dropped": len(batch), "error": problem})


def is_allowed(url: str, allowed: Sequence[str]) -> bool:
    """Return whether an address is one of the allowed ones, or below one of them."""
    try:
        parts = _split(url)
    except ConfigError:
        return False
    return any(_is_below(parts, _split(base)) for base in allowed)


def check_webhook(url: str) -> str:
    """Return the address of a webhook. Raises `ConfigError` for one that is not http or https, or has a password."""
    _split(url)
    return url


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        valid = valid and (parts.port or 1) > 0 and url.isascii() and url.isprintable() and " " not in url
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"webhook {url!r:.200}: expected http://HOST/PATH or https://HOST/PATH")
    return parts


def _is_below(parts: SplitResult, base: SplitResult) -> bool:
    if (parts.scheme, parts.hostname, _port(parts)) != (base.scheme, base.hostname, _port(base)):
        return False
    if {".", ".."} & set(parts.path.replace("%2e", ".").replace("%2E", ".").split("/")):
        return False
    folder = base.path if base.path.endswith("/") else f"{base.path}/"
    return parts.path == base.path or parts.path.startswith(folder)


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _post(url: str, body: bytes) -> str:
    """Post once. Returns the problem, if any."""
    parts = _split(url)
    make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = make(str(parts.hostname), _port(parts), timeout=TIMEOUT_SECONDS)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", target, body, {"content-type": "application/json"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    return "" if 200 <= status < 300 else f"status {status}"
