"""Rows drawn ahead come in order, from a thread or from processes, and end with their reader."""

from __future__ import annotations

import multiprocessing
import os
import threading
from itertools import count, islice

import numpy as np
import pytest
import torch

from slipstream.data import prefetch as module
from slipstream.data.prefetch import prefetch


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_come_in_order_from_elsewhere(workers: int) -> None:
    steps = prefetch(lambda n: (n, os.getpid(), threading.current_thread().name), count(3), 2, workers)
    drawn = list(islice(steps, 6))
    steps.close()
    assert [number for number, _, _ in drawn] == [3, 4, 5, 6, 7, 8]
    if workers:
        assert len({process for _, process, _ in drawn} - {os.getpid()}) == 2
    else:
        assert {name for _, _, name in drawn} == {"sampler"}
    assert not multiprocessing.active_children()
    assert "sampler" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_draw_reaches_the_reader(workers: int) -> None:
    def draw(number: int) -> int:
        if number == 1:
            raise ValueError("row 1 cannot be read")
        return number

    steps = prefetch(draw, count(), 2, workers)
    assert next(steps) == 0
    with pytest.raises(ValueError, match="row 1 cannot be read"):
        next(steps)


def test_orders_may_change_while_rows_are_drawn() -> None:
    size = 4
    steps = prefetch(lambda order: order, ((n, size) for n in count()), 1)
    assert next(steps) == (0, 4)
    size = 2
    assert next(order for order in steps if order[1] == 2)[0] <= 4
    steps.close()


@pytest.mark.parametrize("room", [True, False])
def test_large_arrays_come_back_through_shared_memory_or_a_pipe(monkeypatch: pytest.MonkeyPatch, room: bool) -> None:
    monkeypatch.setattr(module, "_has_room", lambda size: room)

    def draw(number: int) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        large = np.full((1 << 19, 2), number, np.float32)
        return {"large": large, "slice": large[::2], "flags": large > 1}, [np.arange(3), np.array(["a", "bc"])]

    steps = prefetch(draw, count(), 1, 2)
    for number, (named, small) in zip(range(4), steps, strict=False):
        expected = draw(number)
        assert {name: array.dtype for name, array in named.items()} == {n: a.dtype for n, a in expected[0].items()}
        assert all(np.array_equal(named[name], array) for name, array in expected[0].items())
        assert all(map(np.array_equal, small, expected[1]))
        assert isinstance(named["large"].base, torch.Tensor) is room
    steps.close()
