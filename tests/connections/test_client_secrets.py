"""Client secrets: only what was signed is accepted, and it reveals no key."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slipstream.connections.client_secrets import PREFIX, ClientSecret, InvalidSecret
from slipstream.connections.keys import Key, KeyRing, new_key

KEY = Key("desk", bytes(range(32)))
OTHER = Key("phone", bytes(range(1, 33)))
SECRET = ClientSecret(KEY, 1_700_000_600, {"type": "transcription", "include": ["é"]})
TEXT = SECRET.seal()
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8"), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)


def find(name: str) -> Key | None:
    return {"desk": KEY, "phone": OTHER}.get(name)


def opened(text: str) -> ClientSecret | None:
    try:
        return ClientSecret.unseal(text, find)
    except InvalidSecret:
        return None


@given(
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.integers(0, 2**40),
    st.dictionaries(st.text("abc", max_size=3), values, max_size=3),
)
def test_what_was_sealed_comes_back(name: str, expires_at: int, session: dict[str, Any]) -> None:
    secret = ClientSecret(Key(name, b"\1" * 32), expires_at, session)
    text = secret.seal()
    assert text.startswith(PREFIX)
    assert set(text.removeprefix(PREFIX)) <= set(CHARACTERS)  # of a header and of a subprotocol
    assert ClientSecret.unseal(text, lambda known: secret.key if known == name else None) == secret


@given(st.integers(0, len(TEXT)), st.integers(0, 3), st.text(st.sampled_from([*CHARACTERS, *"=+/ .\n\0é"]), max_size=3))
@example(0, len(PREFIX), "")
@example(0, 0, PREFIX)
@example(len(TEXT), 0, "=")
@example(9, 0, "\n")
def test_every_change_is_noticed(start: int, removed: int, put: str) -> None:
    changed = TEXT[:start] + put + TEXT[start + removed :]
    assert (opened(changed) is None) == (changed != TEXT)


def test_every_bit_counts() -> None:
    """The last character has bits that no byte needs; they may not differ either."""
    for position in range(len(PREFIX), len(TEXT)):
        number = CHARACTERS.index(TEXT[position])
        for bit in range(6):
            other = CHARACTERS[number ^ 1 << bit]
            assert opened(TEXT[:position] + other + TEXT[position + 1 :]) is None


@given(st.binary(max_size=200) | st.text(st.characters(codec="utf-8"), max_size=200))
def test_noise_is_no_secret(noise: bytes | str) -> None:
    text = noise if isinstance(noise, str) else base64.urlsafe_b64encode(noise).rstrip(b"=").decode()
    assert opened(PREFIX + text) is None


def test_it_needs_the_key_that_signed_it() -> None:
    forged = ClientSecret(Key("desk", OTHER.digest), SECRET.expires_at, SECRET.session).seal()
    assert opened(forged) is None
    body = base64.urlsafe_b64decode(TEXT[len(PREFIX) :] + "=" * (-len(TEXT[len(PREFIX) :]) % 4))
    renamed = PREFIX + base64.urlsafe_b64encode(body.replace(b"desk", b"phone")).rstrip(b"=").decode()
    assert opened(renamed) is None
    with pytest.raises(InvalidSecret):
        ClientSecret.unseal(TEXT, lambda name: None)


@pytest.mark.parametrize(
    "content", [b"", b"[", b"[1]", b'["1",{}]', b"[1,[]]", b"[" * 3000, b'[1,{"a":"\\ud800"}]', b"3"]
)
def test_what_anyone_may_sign_is_checked(content: bytes) -> None:
    """On a server without keys the signature proves nothing."""
    body = b"\0" + content
    anyone = Key("", b"")
    text = PREFIX + base64.urlsafe_b64encode(body + anyone.sign(body)).rstrip(b"=").decode()
    with pytest.raises(InvalidSecret):
        ClientSecret.unseal(text, lambda name: anyone)


def test_a_key_and_its_hash_are_not_in_it(tmp_path: Path) -> None:
    key, line = new_key("desk")
    (tmp_path / "keys").write_text(line)
    found = KeyRing.read(tmp_path / "keys").find(key)
    assert found is not None
    assert found.digest.hex() not in repr(found)
    text = ClientSecret(found, 1, {}).seal()
    body = base64.urlsafe_b64decode(text[len(PREFIX) :] + "==")
    for hidden in (key.encode(), found.digest, found.digest.hex().encode()):
        assert hidden not in body
    again = KeyRing.read(tmp_path / "keys")  # of another process, or after a restart
    assert ClientSecret.unseal(text, again.named).key == found


def test_guesses_of_a_key_that_a_person_chose_are_slow() -> None:
    """Whoever has a client secret can compare its signature with those of guessed keys."""
    chosen = KeyRing.of(["public_token"]).named("key-1")
    assert chosen is not None
    assert chosen.sign(b"data") != Key(chosen.name, chosen.digest).sign(b"data")
