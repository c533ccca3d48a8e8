"""The queue for the slots of an engine: which session gets them next, and which ones it may pass."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

MAX_PASSED = 8
"""How many sessions may get slots before an earlier one that waits for more slots than are free. Then free slots are
kept for that one. As many as the widest session has slots: a session of eight costs others no more than eight do."""


def describe_shortage(width: int, devices: Sequence[tuple[int, int]]) -> str:
    """Return why a session gets no slots.

    Args:
        width: The slots that it needs, on one device.
        devices: Of each device, how many slots are free, and how many it has.

    Example:
        >>> describe_shortage(3, [(2, 8)])
        'the session needs 3 slots, and 2 of 8 are free'
    """
    free, slots = (sum(numbers) for numbers in zip(*devices, strict=True))
    most, of = max(devices)
    if width <= most:
        return f"{free} of {slots} slots are free, but kept for a session that waits for more"
    if width == 1:
        return f"all {slots} slots are in use"
    if len(devices) == 1:
        return f"the session needs {width} slots, and {free} of {slots} are free"
    return f"the session needs {width} slots of one device, and at most {most} of {of} are free"


_Session = TypeVar("_Session", bound=Hashable)


@dataclass(slots=True)
class _Place:
    width: int
    until: float
    keeps: bool
    passed: int = 0

    @property
    def may_be_passed(self) -> bool:
        return not self.keeps or self.passed < MAX_PASSED


class WaitingSessions(Generic[_Session]):
    """Sessions that wait for slots, in the order of arrival. It has no clock, and receives the number of free slots.

    A session for which enough slots are free may pass those that need more, each `MAX_PASSED` times at most. Wide
    sessions therefore do not keep slots from others while those are too few for them, and still get theirs.

    Example:
        >>> waiting = WaitingSessions[str]()
        >>> waiting.add("wide", width=3, until=9.0)
        >>> waiting.admits(width=1, free=2), waiting.next(free=2), waiting.next(free=3)
        (True, None, ('wide', 3))
    """

    def __init__(self) -> None:
        self._places: dict[_Session, _Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[_Session]:
        return iter(self._places)

    @property
    def end(self) -> float:
        """When the first session has waited for long enough; infinite without one."""
        return min((place.until for place in self._places.values()), default=math.inf)

    def position(self, session: _Session) -> int:
        """Return the session's place in the queue, from 1; 0 for one that does not wait."""
        return next((number for number, other in enumerate(self._places, start=1) if other == session), 0)

    def add(self, session: _Session, width: int, until: float, keeps: bool = True) -> None:
        """Append a session to the queue.

        Args:
            session: The session.
            width: The slots that it needs, together.
            until: How long it waits.
            keeps: Whether slots are kept for it once enough others have passed it; False for one that waits for
                another engine at the same time, which keeps them.
        """
        self._places[session] = _Place(width, until, keeps)

    def remove(self, session: _Session) -> bool:
        """Remove a session from the queue. Returns whether it waited."""
        return self._places.pop(session, None) is not None

    def late(self, now: float) -> list[_Session]:
        """Return the sessions that have waited for long enough."""
        return [session for session, place in self._places.items() if place.until <= now]

    def admits(self, width: int, free: int) -> bool:
        """Return whether a session that has just come gets its slots. It has then passed all that wait."""
        if width > free or not all(place.may_be_passed for place in self._places.values()):
            return False
        self._pass(list(self._places.values()))
        return True

    def next(self, free: int) -> tuple[_Session, int] | None:
        """Remove and return the next session that gets its slots, and their number; None if there is none."""
        before: list[_Place] = []
        for session, place in self._places.items():
            if place.width <= free:
                self._pass(before)
                del self._places[session]
                return session, place.width
            if not place.may_be_passed:
                return None
            before.append(place)
        return None

    def _pass(self, places: list[_Place]) -> None:
        for place in places:
            place.passed += 1
