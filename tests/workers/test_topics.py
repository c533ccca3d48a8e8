"""Topics of several processes."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from slipstream.dialects.protocol import Publish, Subscribe
from slipstream.workers.link import Message
from slipstream.workers.topics import TopicHub


def message(action: Publish | Subscribe, member: int) -> Message:
    return {"topic": type(action).__name__, "action": asdict(action), "member": member, "owner": ""}


def test_a_message_costs_as_much_with_many_calls_as_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = TopicHub([])
    sent: list[Message] = []
    for call in range(50):
        hub.take(0, message(Publish(f"call {call}", "first"), call), sent.append)
    hub.take(1, message(Subscribe("call 7"), 1), sent.append)
    assert [one.get("notify", one.get("follows")) for one in sent] == ["first", True]
    looked: list[object] = []
    monkeypatch.setattr(hub._topics, "follows", lambda member: looked.append(member) or True)
    hub.take(0, message(Publish("call 7", "second"), 7), sent.append)
    assert sent[-1]["notify"] == "second"
    assert len(looked) == 1


def test_a_reader_before_the_call_follows_it_from_its_first_message_to_its_end() -> None:
    hub = TopicHub([])
    sent: list[Message] = []
    hub.take(1, message(Subscribe("call"), 4), sent.append)
    assert sent == []
    hub.take(0, message(Publish("call", "words"), 9), lambda message: None)
    assert [one.get("notify", one.get("follows")) for one in sent] == ["words", True]
    hub.lose(0)
    assert [one["member"] for one in sent if "end" in one] == [4]
    assert sent[-1]["follows"] is False
