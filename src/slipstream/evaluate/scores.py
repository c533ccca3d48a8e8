"""Scores of hypotheses: word and character errors, word times and ends of turn.

Errors are counted after Whisper's normalisation (English: spelling, numbers, contractions; other languages: case and
punctuation). Intervals are 95 % bootstrap intervals over recordings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from slipstream.arrays import FloatArray
from slipstream.data.manifest import Recording
from slipstream.data.tokenizer import plain_word
from slipstream.errors import BackendError, SlipstreamError
from slipstream.evaluate.transcribe import Hypothesis
from slipstream.events import Word

TIME_TOLERANCES = (0.08, 0.2)
_ROUNDING = 1e-6  # 0.48 - 0.4 is slightly more than 0.08
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.82, 0.84, 0.86, 0.88, 0.9, 0.92, 0.95)
BOOTSTRAP_DRAWS = 1000
WARMUP_FRAMES = 12


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """Errors by kind among `reference` units of `recordings` recordings; `low` and `high` bound the rate at 95 %."""

    substitutions: int
    deletions: int
    insertions: int
    reference: int
    recordings: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        return (self.substitutions + self.deletions + self.insertions) / max(1, self.reference)


@dataclass(frozen=True, slots=True)
class WordTimes:
    """Times of the correct words.

    Attributes:
        start_error: mean absolute error of their starts, in seconds; None where no reference has times.
        start_shift: median error of their starts, in seconds: below 0, words are written too early. None as above.
        delay: mean time from the end of a word to its last token, in seconds; None as above.
        within: by tolerance in seconds, the share of them that start within it; empty as above.
        f1: by tolerance in seconds, the F1 score of words that are correct and start within it.
        matched: number of correct words, out of `written` and `spoken`.
    """

    start_error: float | None
    start_shift: float | None
    delay: float | None
    within: dict[float, float]
    f1: dict[float, float]
    matched: int
    written: int
    spoken: int


@dataclass(frozen=True, slots=True)
class TurnScore:
    """Ends of turn at one threshold of one pause head.

    Attributes:
        found: share of recordings whose end was found.
        median: median latency in seconds after the speech; None where no end was found.
        late: 90th percentile of the latency.
        false_alarms: share of recordings with an end of turn before the last word started.
    """

    threshold: float
    found: float
    median: float | None
    late: float | None
    false_alarms: float


@dataclass(frozen=True, slots=True)
class Group:
    """The error rates of some recordings: all, or those of one dataset, speaker or language."""

    words: ErrorRate
    characters: ErrorRate


def error_rates(hypotheses: Sequence[Hypothesis]) -> Group:
    """Compute word and character error rates.

    Raises `BackendError` where jiwer or whisper-normalizer is not installed.
    """
    pairs = [(normalise(h.recording.text, h.recording.lang), normalise(h.text, h.recording.lang)) for h in hypotheses]
    pairs = [pair for pair in pairs if _has_words(pair[0])]
    jiwer = load_jiwer()
    return Group(_rate(pairs, jiwer.process_words), _rate(pairs, jiwer.process_characters))


def groups(hypotheses: Iterable[Hypothesis], key: Callable[[Hypothesis], str]) -> dict[str, list[Hypothesis]]:
    """Group hypotheses by `key`, sorted by it."""
    found: dict[str, list[Hypothesis]] = {}
    for one in hypotheses:
        found.setdefault(key(one), []).append(one)
    return dict(sorted(found.items()))


def word_times(hypotheses: Iterable[Hypothesis]) -> WordTimes:
    """Score the times of words, over the recordings whose references have times."""
    errors: list[float] = []
    delays: list[float] = []
    written = spoken = 0
    for one in hypotheses:
        if not one.recording.words:
            continue
        reference = [w for w in one.recording.words if plain_word(w.text)]
        written += len(one.words)
        spoken += len(reference)
        for r, h in _matches(reference, one.words):
            errors.append(one.words[h].start - reference[r].start)
            delays.append(one.emitted[h] - reference[r].end)
    inside = {tolerance: sum(abs(error) <= tolerance + _ROUNDING for error in errors) for tolerance in TIME_TOLERANCES}
    return WordTimes(
        float(np.mean(np.abs(errors))) if errors else None,
        float(np.median(errors)) if errors else None,
        float(np.mean(delays)) if delays else None,
        {tolerance: n / len(errors) for tolerance, n in inside.items()} if errors else {},
        {tolerance: 2 * n / max(1, written + spoken) for tolerance, n in inside.items()},
        len(errors),
        written,
        spoken,
    )


def ends_of_turn(hypotheses: Sequence[Hypothesis], frame_rate: float, head: int | None) -> list[TurnScore]:
    """Score a probability at each threshold: how soon it finds the end of each recording's speech.

    `head`: the number of a pause head; None is the probability that ends turns (`Step.end_of_turn`).
    """

    def probabilities(one: Hypothesis) -> FloatArray:
        if head is None:
            return one.ending_T
        return one.pause_TH[:, head] if one.pause_TH.shape[1] > head else np.zeros(0, np.float32)

    judged = [(one, probabilities(one)) for one in hypotheses if one.recording.text and len(probabilities(one))]
    return [turn_score(judged, threshold, frame_rate) for threshold in (THRESHOLDS if judged else ())]


def turn_score(judged: Sequence[tuple[Hypothesis, FloatArray]], threshold: float, frame_rate: float) -> TurnScore:
    """Score where the values `[T]` of the frames of each hypothesis exceed `threshold`; there is at least one."""
    late: list[float] = []
    false = 0
    for one, value_T in judged:
        last_start, end = last_word(one)
        fired = np.flatnonzero(value_T > threshold) + 1
        times = fired[fired > WARMUP_FRAMES] / frame_rate
        false += bool((times < last_start).any())
        after = times[times >= last_start]
        if len(after):
            late.append(float(after[0] - end))
    return TurnScore(
        threshold,
        len(late) / len(judged),
        float(np.median(late)) if late else None,
        float(np.quantile(late, 0.9)) if late else None,
        false / len(judged),
    )


def normalise(text: str, language: str) -> str:
    """Normalise `text` with Whisper's normaliser for `language`, with one space between words."""
    return " ".join(_normaliser(language)(text).split())


@lru_cache(maxsize=8)
def _normaliser(language: str) -> Callable[[str], str]:
    try:
        if language == "en":
            from whisper_normalizer.english import EnglishTextNormalizer

            normaliser: Callable[[str], str] = EnglishTextNormalizer()
            return normaliser
        from whisper_normalizer.basic import BasicTextNormalizer
    except ImportError as error:
        raise BackendError("evaluation needs whisper-normalizer: pip install 'slipstream-stt[eval]'") from error
    basic: Callable[[str], str] = BasicTextNormalizer()
    return basic


def need_words(recordings: Iterable[Recording], source: object) -> None:
    """Raise `SlipstreamError` when no recording of `source` has words, which error rates are a share of."""
    texts = [(recording.text, recording.lang) for recording in recordings]
    if not any(_has_words(normalise(text, language)) for text, language in texts):
        raise SlipstreamError(f"{source}: no recording of {len(texts)} has a text with words to compare with")


def _has_words(normalised: str) -> bool:
    return any(map(str.isalnum, normalised))  # Whisper's normaliser keeps a text of dots


def load_jiwer() -> Any:
    """Import jiwer. Raises `BackendError` where it is not installed."""
    try:
        import jiwer
    except ImportError as error:
        raise BackendError("evaluation needs jiwer: pip install 'slipstream-stt[eval]'") from error
    return jiwer


def _rate(pairs: Sequence[tuple[str, str]], process: Callable[..., object]) -> ErrorRate:
    counts = np.zeros((len(pairs), 4), np.int64)
    for i, (reference, hypothesis) in enumerate(pairs):
        output: object = process(reference, hypothesis)
        s, d, n, h = (int(getattr(output, k)) for k in ("substitutions", "deletions", "insertions", "hits"))
        counts[i] = s, d, n, s + d + h
    low, high = _interval(counts)
    s, d, n, total = (int(x) for x in counts.sum(axis=0))
    return ErrorRate(s, d, n, total, len(pairs), low, high)


def _interval(counts: npt.NDArray[np.int64]) -> tuple[float, float]:
    if not len(counts):
        return 0.0, 0.0
    drawn = np.random.default_rng(0).integers(0, len(counts), (BOOTSTRAP_DRAWS, len(counts)))
    sums = counts[drawn].sum(axis=1)
    rates = sums[:, :3].sum(axis=1) / np.maximum(1, sums[:, 3])
    return float(np.quantile(rates, 0.025)), float(np.quantile(rates, 0.975))


def _matches(reference: Sequence[Word], written: Sequence[Word]) -> list[tuple[int, int]]:
    """Pairs of indices of the correct words, in the alignment with the fewest errors."""
    if not reference or not written:
        return []
    left, right = ([plain_word(w.text) or "-" for w in words] for words in (reference, written))
    output = load_jiwer().process_words([" ".join(left)], [" ".join(right)])
    return [
        (chunk.ref_start_idx + i, chunk.hyp_start_idx + i)
        for chunk in output.alignments[0]
        if chunk.type == "equal"
        for i in range(chunk.ref_end_idx - chunk.ref_start_idx)
    ]


def last_word(one: Hypothesis) -> tuple[float, float]:
    """When the last word starts and when the speech ends, by the reference or else by the loudness."""
    if one.recording.words:
        last = one.recording.words[-1]
        return last.start, last.end
    # A word takes a third of a second: the last one has not started before that.
    return max(0.0, one.voiced_until - 0.35), one.voiced_until
