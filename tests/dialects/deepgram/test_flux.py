"""Flux without a server: its messages, parameters and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.dialects.deepgram.flux import ORDER, FluxDialect, open_dialect
from slipstream.dialects.models import Models, StreamInfo, StreamRequest
from slipstream.dialects.protocol import Action, CloseCode, Finish, Flush, Open, ProtocolError, Send

RAW = (("encoding", "linear16"), ("sample_rate", "16000"))


def opened(*query: tuple[str, str]) -> FluxDialect:
    models = Models({"script": StreamInfo("script", 0.5, 0.08)})
    usual = [one for one in RAW if one[0] not in dict(query)]
    return open_dialect(StreamRequest(models, (*usual, *query), id="3f2a"))


def sent(actions: list[Action]) -> list[dict[str, Any]]:
    return [json.loads(action.message) for action in actions if isinstance(action, Send)]


def ask(dialect: FluxDialect, **message: Any) -> list[Action]:
    return list(dialect.receive(json.dumps(message)))


def test_a_connection_begins_with_connected() -> None:
    dialect = opened()
    greeting, session = list(dialect.open())
    assert isinstance(greeting, Send)
    assert isinstance(session, Open)
    assert sent([greeting]) == [{"type": "Connected", "request_id": dialect.headers["dg-request-id"], "sequence_id": 0}]


def test_configure_changes_only_what_it_names() -> None:
    dialect = opened(("eager_eot_threshold", "0.4"), ("keyterm", "Kyutai"))
    (success,) = sent(ask(dialect, type="Configure", thresholds={"eot_threshold": 0.9}))
    assert success["type"] == "ConfigureSuccess"
    assert success["thresholds"] == {"eager_eot_threshold": 0.4, "eot_threshold": 0.9, "eot_timeout_ms": 5000}
    assert success["keyterms"] == ["Kyutai"]
    changes = {
        "thresholds": {"eager_eot_threshold": None, "eot_timeout_ms": 700},
        "keyterms": [],
        "language_hints": ["fr"],
    }
    (success,) = sent(ask(dialect, type="Configure", **changes))
    assert success["thresholds"] == {"eot_threshold": 0.9, "eot_timeout_ms": 700}
    assert (success["keyterms"], success["language_hints"]) == ([], ["fr"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"thresholds": {"eot_threshold": 0.4}}, "eot_threshold=0.4: expected a number from 0.5 to 1"),
        ({"thresholds": {"eager_eot_threshold": 0.8}}, "expected at most eot_threshold, which is 0.7"),
        ({"thresholds": {"eot_timeout_ms": True}}, "expected a number from 500 to 60000"),
        ({"thresholds": 3}, "thresholds: expected an object"),
        ({"keyterms": "a"}, "keyterms: expected a list of strings"),
    ],
)
def test_an_invalid_configure_fails_and_changes_nothing(changes: dict[str, Any], reason: str) -> None:
    dialect = opened()
    (failure,) = sent(ask(dialect, type="Configure", **changes))
    assert failure["type"] == "ConfigureFailure"
    assert reason in failure["description"]
    (success,) = sent(ask(dialect, type="Configure"))
    assert success["thresholds"] == {"eot_threshold": 0.7, "eot_timeout_ms": 5000}


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (("eot_threshold", "0.4"), "eot_threshold='0.4': expected a number from 0.5 to 1"),
        (("eager_eot_threshold", "0.9"), "expected at most eot_threshold"),
        (("eot_timeout_ms", "a"), "eot_timeout_ms='a': expected a number from 500 to 60000"),
        (("encoding", "speex"), "encoding='speex': expected one of linear16, linear32, mulaw, alaw, opus, ogg-opus"),
        (("sample_rate", "10"), "sample_rate='10': expected a whole number from 4000 to 768000"),
        (("numerals", "yes"), "numerals='yes': expected true or false"),
        (("multichannel", "true"), "Flux takes one channel"),
    ],
)
def test_invalid_parameters_are_named(query: tuple[str, str], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        opened(query)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"type": "KeepAlive"}', '{"type": "audio"}', "[" * 100_000])
def test_a_message_that_cannot_be_parsed_is_fatal(text: str) -> None:
    dialect = opened()
    with pytest.raises(ProtocolError) as error:
        list(dialect.receive(text))
    assert error.value.code is CloseCode.POLICY_VIOLATION
    told = json.loads(dialect.error(str(error.value), error.value.code))
    assert (told["type"], told["code"]) == ("Error", "UNPARSABLE_CLIENT_MESSAGE")


@given(st.lists(st.sampled_from(list(ORDER["open"])), max_size=20))
def test_any_order_of_legal_messages_follows_the_table(kinds: list[str]) -> None:
    dialect, state = opened(), "open"
    for kind in kinds:
        actions = list(dialect.receive(b"\0\0" * 100)) if kind == "audio" else ask(dialect, type=kind)
        if state == "closing":
            assert actions == []
        elif kind == "CloseStream":
            assert actions[-1] == Finish()
        elif kind == "ForceEndTurn":
            assert actions[-1] == Flush()
        state = ORDER[state][kind]
