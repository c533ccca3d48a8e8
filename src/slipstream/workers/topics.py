"""Topics of several processes: the parent has them, and the workers pass on what their connections do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from slipstream.dialects.protocol import Close, CloseCode, Forward, Publish, Subscribe
from slipstream.server.streams.topics import Subscriber, Topics
from slipstream.workers.link import Message

_ACTIONS: dict[str, type[Publish | Subscribe | Forward]] = {
    kind.__name__: kind for kind in (Publish, Subscribe, Forward)
}


class RemoteTopics(Topics):
    """The topics as a worker sees them.

    Args:
        webhooks: Addresses that webhooks may have.
        send: Sends a message to the parent.
    """

    def __init__(self, webhooks: Sequence[str], send: Callable[[Message], None]) -> None:
        super().__init__(webhooks)
        self._send = send
        self._members: dict[int, Subscriber] = {}
        self._numbers: dict[object, int] = {}
        self._following: set[int] = set()
        self._count = 0

    def follows(self, member: object) -> bool:
        """See `Topics.follows`."""
        return self._numbers.get(member) in self._following

    def do(self, action: Publish | Subscribe | Forward, member: Subscriber, owner: str) -> None:
        """See `Topics.do`."""
        self.check(action)
        if member not in self._numbers:
            self._count += 1
            self._numbers[member] = self._count
            self._members[self._count] = member
        number = self._numbers[member]
        self._send({"topic": type(action).__name__, "action": asdict(action), "member": number, "owner": owner})

    def leave(self, member: object) -> None:
        """See `Topics.leave`."""
        if (number := self._numbers.pop(member, None)) is not None:
            del self._members[number]
            self._following.discard(number)
            self._send({"topic": "leave", "member": number})

    def take(self, message: Message) -> None:
        """Pass a message of the parent to its connection."""
        if (member := self._members.get(message["member"])) is None:
            return
        if "notify" in message:
            member.notify(message["notify"], message["droppable"])
        elif "follows" in message:
            (self._following.add if message["follows"] else self._following.discard)(message["member"])
        else:
            member.end(Close(CloseCode(message["end"]), message["reason"]))


class _Member:
    """A connection of a worker, as the parent sees it."""

    def __init__(self, number: int, send: Callable[[Message], None]) -> None:
        self._number, self._send = number, send
        self.follows = False

    def notify(self, message: str, droppable: bool) -> None:
        self._send({"topic": True, "member": self._number, "notify": message, "droppable": droppable})

    def end(self, close: Close) -> None:
        self._send({"topic": True, "member": self._number, "end": int(close.code), "reason": close.reason})

    def report(self, follows: bool) -> None:
        if follows != self.follows:
            self.follows = follows
            self._send({"topic": True, "member": self._number, "follows": follows})


class TopicHub:
    """The topics of all workers, in the parent. `webhooks`: addresses that webhooks may have."""

    def __init__(self, webhooks: Sequence[str]) -> None:
        self._topics = Topics(webhooks)
        self._members: dict[tuple[int, int], _Member] = {}

    @property
    def busy(self) -> bool:
        """Whether webhooks still have messages to post."""
        return self._topics.busy

    def take(self, worker: int, message: Message, send: Callable[[Message], None]) -> None:
        """Run the action of a connection of a worker. `send`: sends a message to that worker."""
        key = worker, message["member"]
        if message["topic"] == "leave":
            if (left := self._members.pop(key, None)) is not None:
                self._topics.leave(left)
                self._report(self._members.values())
        else:
            member = self._members.setdefault(key, _Member(message["member"], send))
            action, owner = _ACTIONS[message["topic"]](**message["action"]), message["owner"]
            self._topics.do(action, member, owner)
            subscribers = self._topics.subscribers(owner, action.topic)
            self._report(one for one in subscribers if isinstance(one, _Member))

    def lose(self, worker: int) -> None:
        """Remove the connections of a worker that has ended."""
        for key in [key for key in self._members if key[0] == worker]:
            self._topics.leave(self._members.pop(key))
        self._report(self._members.values())

    def _report(self, members: Iterable[_Member]) -> None:
        """Report to the workers which of these members follow a topic now."""
        for member in members:
            member.report(self._topics.follows(member))
