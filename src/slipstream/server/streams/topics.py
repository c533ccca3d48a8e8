"""Messages that one connection publishes and others receive, such as the words of a call: by WebSocket or webhook."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from slipstream.dialects.protocol import Close, CloseCode, Forward, ProtocolError, Publish, Subscribe
from slipstream.server.streams.webhooks import Webhook, is_allowed

HISTORY_MESSAGES = 1000
"""Messages that a topic keeps for those who subscribe later."""
_ENDED = Close(CloseCode.NORMAL)


class Subscriber(Protocol):
    """A connection that receives messages."""

    def notify(self, message: str, droppable: bool) -> None:
        """Send a message of the topic."""
        ...

    def end(self, close: Close) -> None:
        """The topic has ended."""
        ...


@dataclass(slots=True)
class _Topic:
    publishers: set[object] = field(default_factory=set)
    subscribers: set[Subscriber] = field(default_factory=set)
    history: deque[str] = field(default_factory=lambda: deque(maxlen=HISTORY_MESSAGES))
    webhooks: list[Webhook] = field(default_factory=list)


class Topics:
    """The topics of a server. Each belongs to the owner of a key: others cannot read it.

    A topic ends when the last of its publishers leaves.

    Args:
        webhooks: Addresses that webhooks may have, each of them with all addresses below it.
    """

    def __init__(self, webhooks: Sequence[str] = ()) -> None:
        self._allowed = tuple(webhooks)
        self._topics: dict[tuple[str, str], _Topic] = {}
        self._joined: dict[object, set[tuple[str, str]]] = {}
        self._webhooks: set[Webhook] = set()

    @property
    def busy(self) -> bool:
        """Whether webhooks still have messages to post."""
        self._webhooks = {webhook for webhook in self._webhooks if webhook.busy}
        return bool(self._webhooks)

    def follows(self, member: object) -> bool:
        """Whether a member receives a topic that others publish now."""
        topics = (self._topics.get(key) for key in self._joined.get(member, ()))
        return any(topic is not None and topic.publishers and member in topic.subscribers for topic in topics)

    def subscribers(self, owner: str, topic: str) -> list[Subscriber]:
        """Return the members that receive a topic."""
        found = self._topics.get((owner, topic))
        return list(found.subscribers) if found is not None else []

    def check(self, action: Publish | Subscribe | Forward) -> None:
        """Raise `ProtocolError` for a webhook that is not allowed."""
        if isinstance(action, Forward) and not is_allowed(action.url, self._allowed):
            raise ProtocolError(
                f"webhook {action.url!r:.200} is not allowed: the server's --call-webhook names those that are"
            )

    def do(self, action: Publish | Subscribe | Forward, member: Subscriber, owner: str) -> None:
        """Run the action of a dialect. Raises `ProtocolError` for a webhook that is not allowed."""
        self.check(action)
        key = (owner, action.topic)
        topic = self._topics.setdefault(key, _Topic())
        self._joined.setdefault(member, set()).add(key)
        if isinstance(action, Subscribe):
            topic.subscribers.add(member)
            for message in topic.history:
                member.notify(message, False)
            return
        topic.publishers.add(member)
        if isinstance(action, Forward):
            webhook = Webhook(action.url, topic.history)
            topic.webhooks.append(webhook)
            self._webhooks.add(webhook)
            return
        for subscriber in list(topic.subscribers):
            subscriber.notify(action.message, action.droppable)
        if not action.droppable:
            topic.history.append(action.message)
            for webhook in topic.webhooks:
                webhook.put(action.message)

    def leave(self, member: object) -> None:
        """Remove a member from all topics."""
        for key in self._joined.pop(member, ()):
            topic = self._topics.get(key)
            if topic is None:
                continue
            published = member in topic.publishers
            topic.publishers.discard(member)
            topic.subscribers = {one for one in topic.subscribers if one is not member}
            if topic.publishers or (topic.subscribers and not published):
                continue
            del self._topics[key]
            for subscriber in topic.subscribers:
                subscriber.end(_ENDED)
