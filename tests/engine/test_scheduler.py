from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
from tests.fakes import FRAME_RATE, ScriptRunner, apply_ops, new_session, run, silence, sound_of, words_of

from slipstream.engine.scheduler import COST_KEPT_SECONDS, URGENT_WAIT_SECONDS, Scheduler, StepCosts
from slipstream.engine.session import Session
from slipstream.engine.waiting import MAX_PASSED
from slipstream.errors import Overloaded
from slipstream.events import Flushed, MarkerReached, Ready
from slipstream.hints import Hints
from slipstream.model.config import PAD_ID

WAIT = 2**-7  # seconds; powers of two, so that sums of times are exact


class Bench:
    """A scheduler, sessions on it, and a clock that moves by hand."""

    def __init__(self, slots: int, **options: float) -> None:
        self.runner = ScriptRunner(slots=slots)
        self.scheduler = Scheduler(slots, batch_wait=WAIT, **options)  # type: ignore[arg-type]
        self.now = 128.0

    def open(self, wait: float = 0.0, beam: int = 1) -> Session:
        session = new_session(self.runner, hints=Hints(beam=beam))
        self.scheduler.add(session, self.now, wait)
        return session

    def send(self, session: Session, frames: float) -> None:
        session.push(silence(frames))
        self.scheduler.refresh(session, self.now)

    def step(self) -> list[Session]:
        batch = self.scheduler.take(self.now)
        for session in batch:
            run(session, self.runner, self.now, steps=1)
            self.scheduler.refresh(session, self.now)
        return batch

    def delay(self) -> float | None:
        return self.scheduler.delay(self.now)


# ----------------------------------------------------------------------------------------------------------- admission


def test_the_lowest_free_slot_is_given_first() -> None:
    bench = Bench(3)
    first, second, third = bench.open(), bench.open(), bench.open()
    assert (first.slot, second.slot, third.slot) == (0, 1, 2)
    bench.scheduler.remove(second, bench.now)
    bench.scheduler.remove(first, bench.now)
    assert bench.open().slot == 0
    assert bench.open().slot == 1
    assert bench.scheduler.active == 3


def test_without_a_wait_a_full_scheduler_is_overloaded() -> None:
    bench = Bench(1)
    bench.open()
    with pytest.raises(Overloaded, match="all 1 slots are in use"):
        bench.open()


def test_an_overloaded_scheduler_gives_the_reason() -> None:
    bench = Bench(3, max_waiting=1)
    bench.open()
    with pytest.raises(Overloaded, match=r"^the session needs 3 slots, and 2 of 3 are free$"):
        bench.open(beam=3)
    wide = bench.open(wait=5, beam=3)
    assert bench.scheduler.shortage(wide) == "the session needs 3 slots, and 2 of 3 are free"
    with pytest.raises(Overloaded, match=r"^the session needs 3 slots, and 2 of 3 are free; 1 sessions wait already$"):
        bench.open(wait=5, beam=3)
    for _ in range(MAX_PASSED):
        bench.scheduler.remove(bench.open(), bench.now)
    with pytest.raises(Overloaded, match=r"^2 of 3 slots are free, but kept for a session that waits for more$"):
        bench.open()


def test_waiting_sessions_get_slots_in_order_with_their_position() -> None:
    bench = Bench(1)
    holder, first, second = bench.open(), bench.open(wait=5), bench.open(wait=5)
    assert [bench.scheduler.position(session) for session in (holder, first, second)] == [0, 1, 2]
    assert first.events == []
    assert bench.scheduler.remove(holder, bench.now) == [first]
    assert first.events == [Ready()]
    assert [bench.scheduler.position(session) for session in (first, second)] == [0, 1]
    assert bench.scheduler.remove(first, bench.now) == [second]


def test_a_wait_is_bounded() -> None:
    bench = Bench(1)
    bench.open()
    hasty, patient = bench.open(wait=2), bench.open(wait=5)
    assert bench.delay() == 2
    bench.now += 2
    assert bench.scheduler.expire(bench.now) == [hasty]
    assert bench.scheduler.remove(hasty, bench.now) == []
    assert bench.delay() == 3
    assert bench.scheduler.position(patient) == 1


def test_the_queue_is_bounded() -> None:
    bench = Bench(1, max_waiting=2)
    bench.open()
    bench.open(wait=5)
    bench.open(wait=5)
    with pytest.raises(Overloaded, match="2 sessions wait already"):
        bench.open(wait=5)


def test_sessions_that_need_fewer_slots_pass_one_that_waits_for_more() -> None:
    bench = Bench(4)
    holders = [bench.open(), bench.open()]
    wide = bench.open(wait=5, beam=3)
    for _ in range(MAX_PASSED):
        narrow = bench.open()
        assert narrow.slot is not None
        assert bench.scheduler.remove(narrow, bench.now) == []
    assert bench.scheduler.position(wide) == 1
    assert bench.scheduler.active == len(holders)


def test_a_session_that_needs_many_slots_gets_them_although_others_keep_coming() -> None:
    bench = Bench(4)
    active = [bench.open() for _ in range(4)]
    wide = bench.open(wait=1000, beam=3)
    passed = 0
    for _ in range(MAX_PASSED + 3):  # each second one session ends and another comes
        assert not wide.slots
        bench.now += 1
        following = bench.open(wait=1000)
        assert bench.scheduler.remove(active.pop(0), bench.now) in ([following], [], [wide])
        if following.slots:
            active.append(following)
            passed += 1
    assert passed == MAX_PASSED
    assert wide.slots == (0, 1, 2)
    assert bench.scheduler.waiting == 3


def test_a_session_whose_wait_is_over_no_longer_keeps_slots() -> None:
    bench = Bench(2)
    holder = bench.open()
    wide = bench.open(wait=5, beam=2)
    for _ in range(MAX_PASSED):
        bench.scheduler.remove(bench.open(), bench.now)
    with pytest.raises(Overloaded):
        bench.open()
    narrow = bench.open(wait=9)
    bench.now += 5
    assert bench.scheduler.expire(bench.now) == [wide]
    assert bench.scheduler.remove(wide, bench.now) == [narrow]
    assert (holder.slot, narrow.slot) == (0, 1)


def test_audio_sent_while_waiting_is_processed_after_it() -> None:
    bench = Bench(1)
    holder, waiting = bench.open(), bench.open(wait=5)
    bench.send(waiting, 3)
    assert bench.delay() == 5
    bench.scheduler.remove(holder, bench.now)
    assert bench.step() == [waiting]


def test_removing_twice_frees_one_slot_once() -> None:
    bench = Bench(2)
    session = bench.open()
    bench.scheduler.remove(session, bench.now)
    bench.scheduler.remove(session, bench.now)
    assert [bench.open().slot, bench.open().slot] == [0, 1]
    with pytest.raises(Overloaded):
        bench.open()


# ------------------------------------------------------------------------------------------------------- when to step


def test_nothing_is_due_while_no_session_has_a_frame() -> None:
    bench = Bench(2)
    session = bench.open()
    assert bench.delay() is None
    bench.send(session, 0.9)
    assert bench.delay() is None
    assert bench.step() == []


def test_a_step_runs_when_every_session_has_a_frame() -> None:
    bench = Bench(3)
    first, second = bench.open(), bench.open()
    bench.send(first, 1)
    assert bench.delay() == pytest.approx(WAIT)
    assert bench.step() == []
    bench.send(second, 1)
    assert bench.delay() == 0
    assert bench.step() == [first, second]
    assert bench.delay() is None


def test_a_step_runs_when_the_oldest_frame_has_waited_long_enough() -> None:
    bench = Bench(3)
    first, second, _ = bench.open(), bench.open(), bench.open()
    bench.send(first, 1)
    bench.now += WAIT / 2
    bench.send(second, 1)
    bench.now += WAIT / 2
    assert bench.delay() == 0
    assert bench.scheduler.oldest_wait(bench.now) == pytest.approx(WAIT)
    assert bench.step() == [first, second]


def test_sessions_that_are_behind_catch_up_and_others_share_their_steps() -> None:
    bench = Bench(3)
    behind, other, _ = bench.open(), bench.open(), bench.open()
    bench.send(other, 1)
    bench.send(behind, 5)
    steps = []
    while bench.delay() == 0:
        steps.append(bench.step())
    assert [set(step) for step in steps] == [{behind, other}, {behind}, {behind}, {behind}]
    bench.now += WAIT  # the last frame is not behind, and waits for others
    assert bench.step() == [behind]


def test_among_many_sessions_an_urgent_frame_waits_briefly_for_others() -> None:
    bench = Bench(64)
    sessions = [bench.open() for _ in range(64)]
    bench.send(sessions[0], 5)
    assert bench.delay() == pytest.approx(URGENT_WAIT_SECONDS)
    for session in sessions[1:4]:
        bench.send(session, 1)
    assert bench.delay() == 0
    assert set(bench.step()) == set(sessions[:4])
    bench.now += URGENT_WAIT_SECONDS
    assert bench.step() == sessions[:1]


def test_a_flush_runs_immediately_next_to_other_sessions() -> None:
    bench = Bench(3)
    flushing, other, _ = bench.open(), bench.open(), bench.open()
    flushing.push(sound_of("fox", 2))
    flushing.flush(bench.now)
    bench.scheduler.refresh(flushing, bench.now)
    steps = 0
    while bench.delay() == 0:
        bench.send(other, 1)
        assert set(bench.step()) == {flushing, other}
        steps += 1
    assert steps == 2 + 6
    assert other.clock == steps / FRAME_RATE
    assert flushing.clock == 2 / FRAME_RATE


def test_a_removed_session_is_in_no_step() -> None:
    bench = Bench(2)
    gone, other = bench.open(), bench.open()
    bench.send(gone, 3)
    bench.send(other, 1)
    bench.scheduler.remove(gone, bench.now)
    bench.send(gone, 3)
    assert bench.step() == [other]


def test_audio_that_comes_during_the_last_step_of_a_flush_leaves_no_empty_step() -> None:
    bench = Bench(1)
    session = bench.open()
    session.push(sound_of("fox", 1))
    session.flush(bench.now)
    bench.scheduler.refresh(session, bench.now)
    while session.ready:
        (stepped,) = bench.scheduler.take(bench.now)
        bench.send(session, 0)  # as another thread may while the step runs
        run(stepped, bench.runner, bench.now, steps=1)
        bench.scheduler.refresh(stepped, bench.now)
    assert bench.delay() is None
    assert bench.step() == []


def test_due_and_taken_agree_at_any_time() -> None:
    random = np.random.default_rng(0)
    bench = Bench(8)
    sessions = [bench.open() for _ in range(8)]
    for _ in range(500):
        bench.now += float(random.exponential(WAIT))
        session = sessions[random.integers(8)]
        bench.send(session, float(random.exponential(0.7)))
        delay = bench.delay()
        if delay is not None and random.random() < 0.5:
            bench.now += delay
            assert bench.step()
        else:
            assert bool(bench.step()) == (delay == 0)


# --------------------------------------------------------------------------------------------- flushes among many


class Simulation:
    """Live sessions in virtual time: each sends a frame every 80 ms, `cost` gives the time of a step for N sessions.

    `waits`: for how long each frame of those that never flush had waited when its step began. `flushes`: how long each
    flush took.
    """

    FRAME = 1 / FRAME_RATE

    def __init__(self, sessions: int, cost: Callable[[int], float]) -> None:
        self.cost = cost
        self.now = 0.0
        self.waits: list[float] = []
        self.flushes: list[float] = []
        self.flushing: set[Session] = set()
        self.runner = ScriptRunner(slots=sessions)
        self.scheduler = Scheduler(sessions)
        self.sessions = [new_session(self.runner) for _ in range(sessions)]
        self.sent: dict[Session, deque[float]] = {session: deque() for session in self.sessions}
        self.coming: list[tuple[float, int, bool]] = []  # a heap: when, which session, and whether it wants a flush
        for number, (session, phase) in enumerate(
            zip(self.sessions, np.random.default_rng(0).uniform(0, self.FRAME, sessions), strict=True)
        ):
            self.scheduler.add(session, self.now)
            heapq.heappush(self.coming, (float(phase), number, False))

    def flush(self, number: int, when: float) -> None:
        self.flushing.add(self.sessions[number])
        heapq.heappush(self.coming, (when, number, True))

    def run(self, until: float) -> None:
        while self.now < until:
            self.deliver(self.now)
            if batch := self.scheduler.take(self.now):
                self.step(batch)
            else:
                delay = self.scheduler.delay(self.now)
                self.now = min(self.coming[0][0], math.inf if delay is None else self.now + delay)

    def step(self, batch: list[Session]) -> None:
        began, row_S = self.now, silence(1)
        heard = [session.clock for session in batch]
        for session in batch:
            session.fill(row_S)
        self.now += self.cost(len(batch))
        self.deliver(self.now)
        for session, clock in zip(batch, heard, strict=True):
            session.advance(PAD_ID, -0.1, [0.0] * 4, self.now)
            self.flushes += [event.seconds for event in session.events if isinstance(event, Flushed)]
            session.events.clear()
            if session.clock > clock:
                waited = began - self.sent[session].popleft()
                if session not in self.flushing:
                    self.waits.append(waited)
            self.scheduler.refresh(session, self.now)

    def deliver(self, now: float) -> None:
        while self.coming[0][0] <= now:
            when, number, flush = heapq.heappop(self.coming)
            session = self.sessions[number]
            if flush:
                session.flush(when)
            else:
                session.push(silence(1))
                self.sent[session].append(when)
                heapq.heappush(self.coming, (when + self.FRAME, number, False))
            self.scheduler.refresh(session, when)


@pytest.mark.parametrize(("sessions", "full", "expected"), [(64, 0.012, 0.060), (512, 0.040, 0.120)])
def test_a_flush_takes_separate_steps_and_no_session_is_late(sessions: int, full: float, expected: float) -> None:
    """Eight rows or fewer in 4 ms, all in `full`: seven steps of the flush take no seven full ones."""
    live = Simulation(sessions, cost=lambda count: 0.004 if count <= 8 else full)
    for number in range(6):
        live.flush(number * 3, when=0.4 + 0.13 * number)
    live.run(until=1.4)
    assert len(live.flushes) == 6
    assert np.median(live.flushes) < expected < 6 * full
    assert max(live.waits) < live.FRAME


def test_flushes_share_steps_where_a_small_step_costs_as_much_as_a_full_one() -> None:
    live = Simulation(64, cost=lambda count: 0.02)
    for number in range(10):
        live.flush(number * 3, when=0.2 + 0.13 * number)
    steps: list[int] = []
    live.cost = lambda count: steps.append(count) or 0.02  # type: ignore[func-returns-value]
    live.run(until=1.8)
    assert len(live.flushes) == 10
    assert sum(count <= 4 for count in steps) <= 2  # it was tried
    assert max(live.waits) < live.FRAME


def test_many_simultaneous_flushes_delay_no_session() -> None:
    live = Simulation(256, cost=lambda count: 0.004 if count <= 8 else 0.03)
    for number in range(0, 256, 2):
        live.flush(number, when=0.4)
    live.run(until=1.2)
    assert len(live.flushes) == 128
    assert max(live.waits) < live.FRAME


def test_step_times_are_kept_by_size_and_expire() -> None:
    """So that one slow step does not rule out those of its size for good."""
    costs = StepCosts()
    costs.record(2, 1.0, now=100.0)
    costs.record(64, 0.03, now=108.0)
    assert [costs.of(sessions, now=109.0) for sessions in (1, 3, 40, 100)] == [0.0, 1.0, 1.0, 0.03]
    assert costs.of(3, now=100.0 + COST_KEPT_SECONDS) == 0.0


# ------------------------------------------------------------------------------------------------------------- markers


def test_a_marker_is_flushed_for_when_no_more_audio_comes() -> None:
    bench = Bench(1, marker_wait=0.2)
    session = bench.open()
    session.push(sound_of("fox", 3))
    session.mark(7, bench.now)
    bench.scheduler.refresh(session, bench.now)
    events = []
    while bench.delay() == 0:
        (stepped,) = bench.scheduler.take(bench.now)
        events += run(stepped, bench.runner, bench.now, steps=1)
        bench.scheduler.refresh(stepped, bench.now)
    assert bench.delay() == pytest.approx(0.2)
    bench.now += 0.1
    bench.send(session, 0.5)  # more audio: it may go on, so the wait begins again
    assert bench.delay() == pytest.approx(0.2)
    bench.now += 0.21
    assert bench.scheduler.expire(bench.now) == []
    assert bench.delay() == 0
    apply_ops(session, bench.runner)
    events += run(session, bench.runner, bench.now)
    assert [word.text for word in words_of(events)] == ["fox"]
    assert MarkerReached(7) in events
