"""Forced alignment: when each word of a known text is spoken, by Viterbi search over a phone model's frames.

The states of a text are its phones in order, with an optional silence before, between and after the words: the
topology of CTC with silence as the blank (Graves et al., 2006), over a head that was trained on each frame's phone, so
that the times it finds are the phones' own and not a spike somewhere in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slipstream.arrays import FloatArray, IntArray
from slipstream.errors import SlipstreamError
from slipstream.events import Word

SILENCE_ID = 0


@dataclass(frozen=True, slots=True)
class Alignment:
    """The words with their times, the phones (number, start in seconds; silences too), and how well they fit: the mean
    log-probability of the frames of speech."""

    words: tuple[Word, ...]
    phones: tuple[tuple[int, float], ...]
    fit: float


def viterbi(log_probs_TV: FloatArray, states_S: IntArray) -> IntArray:
    """Find the most likely state of each frame, `[T]`: states in order, each for at least one frame, silences optional.

    `log_probs_TV`: the log-probability of each symbol in each frame; `states_S`: the symbol of each state.
    Raises `SlipstreamError` when there are fewer frames than states that must be visited.
    """
    T, S = len(log_probs_TV), len(states_S)
    optional = states_S == SILENCE_ID
    if int((~optional).sum()) > T:
        raise SlipstreamError(f"{T} frames are too few for {int((~optional).sum())} phones")
    emission = log_probs_TV[:, states_S]
    score = np.full(S, -np.inf, np.float32)
    score[0] = emission[0, 0]
    if S > 1 and optional[0]:
        score[1] = emission[0, 1]
    # A silence may be stepped over, from the state before it to the one after.
    may_skip = np.zeros(S, bool)
    may_skip[2:] = optional[1:-1]
    back = np.zeros((T, S), np.int8)
    candidates = np.full((3, S), -np.inf, np.float32)
    for t in range(1, T):
        candidates[0] = score
        candidates[1, 1:] = score[:-1]
        candidates[2, 2:] = np.where(may_skip[2:], score[:-2], -np.inf)
        back[t] = candidates.argmax(axis=0)
        score = candidates[back[t], np.arange(S)] + emission[t]
    state = S - 1
    if S > 1 and optional[-1] and score[-2] > score[-1]:
        state = S - 2
    path = np.empty(T, np.int64)
    for t in range(T - 1, -1, -1):
        path[t] = state
        state -= int(back[t, state])
    return path


def align_words(
    log_probs_TV: FloatArray,
    phones: Sequence[Sequence[int]],
    texts: Sequence[str],
    frame_seconds: float,
    lag: float,
    *,
    spikes: bool = False,
) -> Alignment:
    """When each word and phone is spoken, from framewise phone log-probabilities.

    `phones`: the phone numbers of each word; a word without (joined to its neighbour by the pronouncer) shares the
    neighbour's time. `lag`: seconds by which the head names phones late. `spikes`: silence may also be between the
    phones of a word, as the blank of a CTC model does.
    """
    states, owners = [SILENCE_ID], [-1]
    for number, word in enumerate(phones):
        for phone in word:
            states.append(phone)
            owners.append(number)
            if spikes:
                states.append(SILENCE_ID)
                owners.append(-1)
        if word and not spikes:
            states.append(SILENCE_ID)
            owners.append(-1)
    path = viterbi(log_probs_TV, np.array(states))
    owner_T = np.array(owners)[path]
    spoken = owner_T >= 0
    scores = log_probs_TV[np.arange(len(path)), np.array(states)[path]]

    def time(frame: int) -> float:
        return max(0.0, frame * frame_seconds - lag)

    starts: list[float | None] = [None] * len(texts)
    ends: list[float | None] = [None] * len(texts)
    for number in range(len(texts)):
        frames = np.flatnonzero(owner_T == number)
        if len(frames):
            starts[number], ends[number] = time(int(frames[0])), time(int(frames[-1]) + 1)
    entered = np.flatnonzero(np.diff(path, prepend=-1))
    return Alignment(
        spread(texts, starts, ends, len(log_probs_TV) * frame_seconds),
        tuple((states[path[frame]], time(int(frame))) for frame in entered),
        float(scores[spoken].mean()) if spoken.any() else -np.inf,
    )


def spread(
    texts: Sequence[str], starts: Sequence[float | None], ends: Sequence[float | None], length: float
) -> tuple[Word, ...]:
    """Words from the times that are known; a run of words without shares its known neighbour's time evenly.

    Pronouncers join small words ("of the") and time only the first.
    """
    words: list[Word] = []
    i = 0
    while i < len(texts):
        j = i + 1
        while j < len(texts) and starts[j] is None:
            j += 1
        begin = starts[i] if starts[i] is not None else 0.0
        end = next((e for e in reversed(ends[i:j]) if e is not None), None)
        if end is None:
            end = next((s for s in starts[j:] if s is not None), length)
        begin, end = float(begin or 0.0), max(float(end), float(begin or 0.0))
        step = (end - begin) / (j - i)
        words += [Word(texts[k], begin + (k - i) * step, begin + (k - i + 1) * step) for k in range(i, j)]
        i = j
    return tuple(words)
