"""API keys: shown once when made, kept as hashes, compared in constant time.

A key file has a line for each key, `name sha256:<hex>`; what follows a `#` is a comment.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from slipstream.errors import ConfigError

_ALGORITHM = "sha256"


class KeyRing:
    """The keys that may use a server, by name. Holds no key itself, only hashes."""

    def __init__(self, hashes: Mapping[str, bytes]) -> None:
        self._hashes = dict(hashes)

    @classmethod
    def read(cls, path: Path) -> KeyRing:
        """Read a key file. Raises `ConfigError` that names the line."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read as a key file: {error}") from error
        hashes: dict[str, bytes] = {}
        for number, line in enumerate(lines, start=1):
            fields = line.partition("#")[0].split()
            if not fields:
                continue
            digest = _parse_hash(fields[1]) if len(fields) == 2 else None
            if digest is None:
                raise ConfigError(f"{path}:{number}: expected `name {_ALGORITHM}:<64 hex digits>`")
            if fields[0] in hashes:
                raise ConfigError(f"{path}:{number}: a second key named {fields[0]!r}")
            hashes[fields[0]] = digest
        if not hashes:
            raise ConfigError(f"{path}: holds no key")
        return cls(hashes)

    @classmethod
    def of(cls, keys: Iterable[str]) -> KeyRing:
        """The ring of keys that are known in clear, as the Rust server's `authorized_ids` are; named by their order."""
        return cls({f"key-{number}": _hash(key) for number, key in enumerate(keys, start=1)})

    def name_of(self, key: str | None) -> str | None:
        """The name of `key`, or None when it is not on the ring. Takes as long for either."""
        digest, found = _hash(key or ""), None
        for name, known in self._hashes.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found if key else None


def new_key(name: str) -> tuple[str, str]:
    """Make a key of 256 random bits. Returns the key, and the line that lets it in."""
    if not name or len(name.split()) != 1 or "#" in name:
        raise ConfigError(f"a key's name is one word without '#', not {name!r}")
    key = secrets.token_urlsafe(32)
    return key, f"{name} {_ALGORITHM}:{_hash(key).hex()}"


def _hash(key: str) -> bytes:
    # One round is enough: a key of 256 random bits cannot be guessed, however fast the guesses.
    return hashlib.new(_ALGORITHM, key.encode("utf-8", "surrogateescape")).digest()


def _parse_hash(text: str) -> bytes | None:
    algorithm, _, digits = text.partition(":")
    if algorithm != _ALGORITHM or len(digits) != 64:
        return None
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return None
