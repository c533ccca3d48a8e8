"""API keys at rest and in use."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.connections.keys import KeyRing, new_key
from slipstream.errors import ConfigError


def name(ring: KeyRing, key: str) -> str | None:
    found = ring.find(key)
    return found and found.name


def test_only_the_new_key_is_accepted(tmp_path: Path) -> None:
    key, line = new_key("desk")
    other, other_line = new_key("phone")
    file = tmp_path / "keys"
    file.write_text(f"# who may connect\n{line}\n\n{other_line}  # lent out\n")
    ring = KeyRing.read(file)
    assert name(ring, key) == "desk"
    assert name(ring, other) == "phone"
    for wrong in (None, "", key[:-1], key + "x", line.split(":")[1]):
        assert ring.find(wrong) is None


def test_the_file_contains_no_key_in_clear_text() -> None:
    key, line = new_key("desk")
    assert key not in line
    assert len(key) >= 43  # 256 bits


def test_limits_of_a_key(tmp_path: Path) -> None:
    key, line = new_key("desk", streams=4, per_minute=60)
    assert line.endswith(" streams=4 per_minute=60")
    (tmp_path / "keys").write_text(f"{line}  # comment\n")
    found = KeyRing.read(tmp_path / "keys").find(key)
    assert found is not None
    assert (found.streams, found.per_minute) == (4, 60)


def test_a_reload_takes_the_new_keys_or_keeps_the_old(tmp_path: Path) -> None:
    (old, old_line), (new, new_line) = new_key("desk"), new_key("desk")
    file = tmp_path / "keys"
    file.write_text(old_line)
    ring = KeyRing.read(file)
    file.write_text(new_line)
    ring.reload()
    assert ring.find(old) is None
    assert ring.find(new) is not None
    file.write_text("desk")
    with pytest.raises(ConfigError, match="keys:1"):
        ring.reload()
    assert ring.find(new) is not None


def test_keys_known_in_clear() -> None:
    ring = KeyRing.of(["public_token", "open_token"])
    assert name(ring, "open_token") == "key-2"
    assert ring.find("") is None
    assert "public_token" not in str(vars(ring))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("desk", r"keys:1: expected `name sha256:"),
        ("\ndesk md5:" + "0" * 64, r"keys:2: expected"),
        ("desk sha256:" + "z" * 64, "expected"),
        ("desk sha256:" + "0" * 63, "expected"),
        ("a sha256:" + "0" * 64 + "\na sha256:" + "1" * 64, "keys:2: a second key named 'a'"),
        ("a sha256:" + "0" * 64 + " streams=0", "expected"),
        ("a sha256:" + "0" * 64 + " streams=x", "expected"),
        ("a sha256:" + "0" * 64 + " steams=1", "expected"),
        ("a sha256:" + "0" * 64 + " streams=1 streams=2", "expected"),
        ("# none yet", "contains no keys"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=says):
        KeyRing.read(file)


@pytest.mark.parametrize("name", ["", "two words", "a#b"])
def test_a_name_is_one_word(name: str) -> None:
    with pytest.raises(ConfigError, match="one word"):
        new_key(name)
