"""Viterbi alignment against the search of every path."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from slipstream.data.alignment import SILENCE_ID, align_words, spread, viterbi
from slipstream.errors import SlipstreamError


def _every_path(frames: int, states: np.ndarray) -> list[tuple[int, ...]]:
    needed = set(np.flatnonzero(states != SILENCE_ID))
    return [path for path in itertools.combinations_with_replacement(range(len(states)), frames) if needed <= set(path)]


@pytest.mark.parametrize("seed", range(8))
def test_viterbi_finds_the_best_of_all_paths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    states = np.array([0, 1, 2, 0, 1, 0] if seed % 2 else [0, 2, 0, 2, 1])
    log_probs = np.log(rng.dirichlet(np.ones(3) * 0.5, size=6)).astype(np.float32)
    path = viterbi(log_probs, states)
    score = lambda p: log_probs[np.arange(6), states[list(p)]].sum()  # noqa: E731
    assert score(path) == pytest.approx(max(map(score, _every_path(6, states))), rel=1e-5)


def test_many_states_do_not_overflow() -> None:
    states = np.array([0, *[1, 2] * 100, 0])
    log_probs = np.full((400, 3), np.log(1 / 3), np.float32)
    path = viterbi(log_probs, states)
    assert (np.diff(path) >= 0).all()
    assert path[-1] >= 200


def test_too_little_audio_is_an_error() -> None:
    with pytest.raises(SlipstreamError, match="2 frames are too few for 3 phones"):
        viterbi(np.zeros((2, 2), np.float32), np.array([0, 1, 1, 1, 0]))


def test_aligned_words_start_at_their_phones() -> None:
    said = [0, 0, 1, 1, 2, 0, 0, 3, 3, 0]
    log_probs = np.log(np.full((10, 4), 0.01, np.float32))
    log_probs[np.arange(10), said] = np.log(0.97)
    found = align_words(log_probs, [(1, 2), (), (3,)], ["ab", "x", "c"], 0.04, 0.08)
    assert [(w.text, round(w.start, 2), round(w.end, 2)) for w in found.words] == [
        ("ab", 0.0, 0.06),
        ("x", 0.06, 0.12),
        ("c", 0.2, 0.28),
    ]
    phones = [(number, round(start, 2)) for number, start in found.phones]
    assert phones == [(0, 0.0), (1, 0.0), (2, 0.08), (0, 0.12), (3, 0.2), (0, 0.28)]
    assert found.fit == pytest.approx(np.log(0.97), abs=1e-4)


def test_spread_shares_the_time_of_joined_words() -> None:
    words = spread(["one", "of", "the", "best"], [0.0, None, None, 0.9], [0.6, None, None, 1.2], 1.5)
    assert [round(w.start, 2) for w in words] == [0.0, 0.2, 0.4, 0.9]
