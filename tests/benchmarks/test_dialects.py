"""Every dialect has a client for load, fuzzing and attacks."""

from __future__ import annotations

import importlib
from urllib.parse import urlsplit

import pytest
from benchmarks.attacks import ATTACKS
from benchmarks.attacks.__main__ import Latencies, Outcome, cells, columns
from benchmarks.dialect_load import spoken
from benchmarks.dialects import CLIENTS, Vosk
from benchmarks.fuzz import TARGETS

from slipstream.dialects import DIALECTS, TCP_DIALECTS
from slipstream.dialects.calls import PATH as CALLS_PATH


def test_every_dialect_has_a_client() -> None:
    paths = {urlsplit(client.path).path for client in CLIENTS.values() if client.path}
    assert paths == set(DIALECTS) - {CALLS_PATH}  # which only sends: the words of telephone calls
    assert {client.tcp for client in CLIENTS.values() if client.tcp} == set(TCP_DIALECTS)


def test_every_client_is_a_target_of_attacks_and_of_the_fuzzer() -> None:
    importlib.import_module("benchmarks.attacks.dialects")
    assert {f"{name}-{kind}" for name in CLIENTS for kind in ("audio", "commands", "unread")} <= set(ATTACKS)
    assert {f"{name} client" for name in CLIENTS} <= {name for name, _, _ in TARGETS}


@pytest.mark.parametrize("wide", [False, True])
def test_a_line_of_attacks_has_the_columns_of_its_table(wide: bool) -> None:
    quiet, attacked = Latencies([0.01], [0.001], [0.001]), Latencies([0.02], [0.004], [0.001], lost=3)
    outcome = Outcome(quiet, attacked, (70, 80, 75), 0, 1.5, 0.25)
    line = dict(zip(columns(wide), cells("pings", outcome, wide), strict=True))
    assert (line["attack"], line["stream p99"], line["attacked"]) == ("`pings`", "10.0", "1.0" if wide else "4.0")
    assert (line["memory"], line["attacker"]) == ("70 / 80 / 75", "1.50")
    assert line.get("lost") == ("3" if wide else None)


def test_a_client_of_vosk_is_not_done_before_its_last_message() -> None:
    client = Vosk()
    list(client.audio(spoken(client.rate, 3.0)[:160]))
    assert client.read('{"partial": ""}') == []
    assert not client.done
    list(client.finish())
    assert client.read('{"result": [{"word": "a"}], "text": "a"}') == ["a"]
    assert client.done


def test_the_recording_of_the_latencies_ends_with_a_word() -> None:
    short_S, whole_S = spoken(8_000, 4.0), spoken(8_000, 100.0)
    assert 8_000 < len(short_S) <= 4 * 8_000 < len(whole_S)
    assert abs(short_S[-1]) > 0.02
