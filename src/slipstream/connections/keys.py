"""API keys: shown once when made, kept as hashes, compared in constant time.

A key file has one line per key, `name sha256:<hex> [streams=N] [per_minute=N]`; text after a `#` is a comment.
`streams` limits the open streams and uploads, `per_minute` those started per minute.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from slipstream.errors import ConfigError

_ALGORITHM = "sha256"
SIGNATURE_BYTES = hashlib.new(_ALGORITHM).digest_size
_SIGNING = b"slipstream client secrets"
_FORMAT = f"name {_ALGORITHM}:<64 hex digits> [streams=N] [per_minute=N]"


@dataclass(frozen=True, slots=True)
class Key:
    """A key by its name and hash, and its limits; None is unlimited. `chosen`: by a person, so it can be guessed."""

    name: str
    digest: bytes = field(repr=False)
    streams: int | None = None
    per_minute: int | None = None
    chosen: bool = False

    def sign(self, data: bytes) -> bytes:
        """Return a signature that only who has the key or its hash can make, and that reveals neither."""
        return hmac.digest(_signing_key(self.digest, self.chosen), data, _ALGORITHM)


class KeyRing:
    """The accepted keys. Holds only hashes of them."""

    def __init__(self, keys: Iterable[Key], path: Path | None = None) -> None:
        self._keys, self._path = tuple(keys), path

    @classmethod
    def read(cls, path: Path) -> KeyRing:
        """Read a key file. Raises `ConfigError` that names the line."""
        return cls(_read(path), path)

    @classmethod
    def of(cls, keys: Iterable[str]) -> KeyRing:
        """Make a ring of keys in clear text, such as the Rust server's `authorized_ids`, named by their order."""
        return cls(Key(f"key-{number}", _hash(key), chosen=True) for number, key in enumerate(keys, start=1))

    def reload(self) -> None:
        """Read the key file again, if there is one. Raises `ConfigError` and keeps the keys if it is invalid."""
        if self._path is not None:
            self._keys = tuple(_read(self._path))

    def find(self, key: str | None) -> Key | None:
        """Return the entry of `key`, or None for an unknown key. Takes equally long for both."""
        digest, found = _hash(key or ""), None
        for known in self._keys:
            if hmac.compare_digest(digest, known.digest):
                found = known
        return found if key else None

    def named(self, name: str) -> Key | None:
        """Return the key with this name, or None."""
        return next((known for known in self._keys if known.name == name), None)


def new_key(name: str, streams: int | None = None, per_minute: int | None = None) -> tuple[str, str]:
    """Make a key of 256 random bits. Returns the key and its line in a key file."""
    if not name or len(name.split()) != 1 or "#" in name:
        raise ConfigError(f"a key's name is one word without '#', not {name!r}")
    key = secrets.token_urlsafe(32)
    limits = {"streams": streams, "per_minute": per_minute}
    shown = [f" {field}={value}" for field, value in limits.items() if value is not None]
    return key, f"{name} {_ALGORITHM}:{_hash(key).hex()}{''.join(shown)}"


def _read(path: Path) -> list[Key]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file: create it with `slipstream api-key NAME >> {path}`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a key file: {error}") from error
    keys: dict[str, Key] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        try:
            key = _parse(*fields)
        except (TypeError, ValueError):
            raise ConfigError(f"{path}:{number}: expected `{_FORMAT}`") from None
        if key.name in keys:
            raise ConfigError(f"{path}:{number}: a second key named {key.name!r}")
        keys[key.name] = key
    if not keys:
        raise ConfigError(f"{path}: contains no keys")
    return list(keys.values())


def _parse(name: str, digest: str, *limits: str) -> Key:
    """Parse the fields of a line. Raises `TypeError` or `ValueError` for any other fields."""
    algorithm, _, digits = digest.partition(":")
    if algorithm != _ALGORITHM or len(digits) != 64:
        raise ValueError(digest)
    bounds: dict[str, int] = {}
    for limit in limits:
        field, _, value = limit.partition("=")
        if field not in ("streams", "per_minute") or field in bounds or int(value) < 1:
            raise ValueError(limit)
        bounds[field] = int(value)
    return Key(name, bytes.fromhex(digits), bounds.get("streams"), bounds.get("per_minute"))


def _hash(key: str) -> bytes:
    # One round is enough: a key of 256 random bits cannot be guessed, however fast the guesses.
    return hashlib.new(_ALGORITHM, key.encode("utf-8", "surrogateescape")).digest()


@lru_cache(maxsize=1024)
def _signing_key(digest: bytes, chosen: bool) -> bytes:
    """Derive a key for signatures only. Guesses of a chosen key can be tried on a signature, so it is slow there."""
    if chosen:
        return hashlib.scrypt(digest, salt=_SIGNING, n=1 << 14, r=8, p=1, dklen=SIGNATURE_BYTES)
    return hmac.digest(digest, _SIGNING, _ALGORITHM)
