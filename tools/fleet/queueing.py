"""Erlang's formulas, for a fixed number of slots and Poisson arrivals."""

from __future__ import annotations

import math


def erlang_b(slots: int, load: float) -> float:
    """Return the share of streams that find all slots in use, where such streams are lost.

    Args:
        load: Streams that would be open on average with unlimited slots (arrivals per second x mean length).
    """
    inverse = 1.0
    for slot in range(1, slots + 1):  # the usual recursion, stable for any size
        inverse = 1.0 + inverse * slot / load
    return 1.0 / inverse


def erlang_c(slots: int, load: float) -> float:
    """Return the share of streams that wait, where streams wait for as long as necessary; 1 for an unstable queue."""
    if load >= slots:
        return 1.0
    lost = erlang_b(slots, load)
    return slots * lost / (slots - load * (1 - lost))


def wait_over(slots: int, load: float, mean_length: float, seconds: float) -> float:
    """Return the share of streams that wait longer than `seconds`, for exponential lengths. All times in seconds."""
    if load >= slots:
        return 1.0
    return erlang_c(slots, load) * math.exp(-(slots - load) * seconds / mean_length)


def slots_for(load: float, mean_length: float, seconds: float, share: float) -> int:
    """Return the fewest slots with which at most `share` of the streams wait longer than `seconds`."""
    low, high = math.ceil(load), math.ceil(load) + 1
    while wait_over(high, load, mean_length, seconds) > share:
        low, high = high, high + 2 * (high - math.ceil(load))
    while low < high:
        middle = (low + high) // 2
        if wait_over(middle, load, mean_length, seconds) > share:
            low = middle + 1
        else:
            high = middle
    return high
