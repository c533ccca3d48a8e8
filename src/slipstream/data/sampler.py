"""Rows of training: utterances drawn from packs, augmented, laid one after the other with pauses between.

Shapes: B rows, F log-mel frames (100 per second), P codec positions (25), T frames (12.5), M bands.
A row is as long as it is asked to be, whatever the utterances' lengths: nothing is padded away, and the model gets
pauses and several utterances in one stream, as it will in use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slipstream.arrays import FloatArray, IntArray
from slipstream.data.packs import Clip, Pack
from slipstream.data.phones import UNKNOWN, PhoneInventory
from slipstream.data.rows import RowOptions, RowTargets, Sampler, Targets, stack_targets
from slipstream.data.spectral import FLOOR, from_log_power, to_log_power
from slipstream.events import Word
from slipstream.model.numerics import NO_TOKEN
from slipstream.model.text import Tokenizer


@dataclass(frozen=True, slots=True)
class Batch:
    """`mel_BFM` in the front end's scale; `phones_BP` framewise phone numbers; `sequence` and `lengths_B` the phones of
    each row, concatenated, for CTC (0 is its blank, so phone p is p + 1)."""

    mel_BFM: FloatArray
    targets: Targets
    phones_BP: IntArray
    sequence: IntArray
    lengths_B: IntArray


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """`codes_BKT`, and the targets of the same frames."""

    codes_BKT: IntArray
    targets: Targets


class RowSampler(Sampler):
    """Rows of log-mel frames; the n-th row depends on the seed and n alone, so that a run resumes where it was."""

    def __init__(
        self,
        packs: Sequence[Pack],
        phones: PhoneInventory,
        tokenizer: Tokenizer,
        options: RowOptions,
        *,
        frame_rate: float = 12.5,
        phone_rate: float = 25.0,
        seed: int = 0,
    ) -> None:
        super().__init__(packs, tokenizer, options, seed, "mel", frame_rate)
        self.phones, self.phone_rate = phones, phone_rate

    def batch(self, first_row: int, rows: int) -> Batch:
        """Rows `first_row` to `first_row + rows`."""
        drawn = [self._row(np.random.default_rng((self.seed, n))) for n in range(first_row, first_row + rows)]
        return Batch(
            np.stack([row[0] for row in drawn]),
            stack_targets([row[1] for row in drawn]),
            np.stack([row[2] for row in drawn]),
            np.concatenate([row[3] for row in drawn]),
            np.array([len(row[3]) for row in drawn]),
        )

    def _row(self, rng: np.random.Generator) -> tuple[FloatArray, RowTargets, IntArray, IntArray]:
        augment, F, rate = self.data.augment, self.length, self.kind.rate
        delay = self._delay(rng)
        canvas = np.full((F, self.kind.width), FLOOR, np.float32)
        labels = np.zeros(round(self.data.seconds * self.phone_rate), np.int64)
        words: list[Word] = []
        unknown: list[tuple[float, float]] = []
        sequence: list[int] = []
        levels: list[float] = []
        clips = self._clips(rng)
        at = round(rng.uniform(0, 0.6) * rate)
        # The first clip may reach the end and be cut there by a slow reading of it; the others leave room for one.
        drawn = self._fitting(clips, F)
        while drawn is not None:
            pack, clip = drawn
            content, clip = self._content(pack, clip, rng)
            log_power, factor = augment.utterance(to_log_power(content), rng)
            log_power = log_power[: F - at]
            self._lay(canvas, at, log_power, rng)
            levels.append(float(np.log(np.mean(np.exp(log_power)) + 1e-9)))
            start, end = at / rate, (at + len(log_power)) / rate
            words += self._words(clip, start, factor)
            if clip.text and not clip.words:
                unknown.append((start, end))
            self._label(labels, sequence, clip, start, end, factor)
            at += len(log_power) + self._gap(rng)
            drawn = self._fitting(clips, (F - at) / augment.speed) if F - at >= rate else None
        row = augment.mask(augment.row(canvas, float(np.mean(levels)), rng), rng)
        targets = self._targets(words, unknown, delay, rng)
        return from_log_power(row), targets, labels, np.array(sequence, np.int64)

    def _lay(self, canvas: FloatArray, at: int, log_power: FloatArray, rng: np.random.Generator) -> None:
        """Place an utterance; half of the time its own background fills the rest of the row."""
        canvas[at : at + len(log_power)] = log_power
        after = canvas[at + len(log_power) :]
        if len(after) and rng.random() < 0.5:
            quiet = np.quantile(log_power[::4], 0.08, axis=0).astype(np.float32)
            after[:] = quiet + rng.standard_normal(after.shape, np.float32) * 0.5

    def _label(
        self, labels: IntArray, sequence: list[int], clip: Clip, start: float, end: float, factor: float
    ) -> None:
        """Phones of one utterance: framewise where their times are known, and their sequence."""
        rate = self.phone_rate
        if clip.text and not clip.phones:
            sequence += [n + 1 for n in map(self.phones.number, clip.phone_sequence) if n]
            labels[math.floor(start * rate) : math.ceil(end * rate)] = UNKNOWN
            return
        numbers = [self.phones.number(name) for name, _ in clip.phones]
        times = [start + t / factor for _, t in clip.phones] + [end]
        for number, begin, finish in zip(numbers, times, times[1:], strict=False):
            if number and begin < end:
                sequence.append(number + 1)
            labels[math.floor(begin * rate) : math.floor(finish * rate)] = number


class TokenSampler(Sampler):
    """Rows of codec tokens; a clip longer than a row is entered at a drawn place. As deterministic as `RowSampler`."""

    def __init__(self, packs: Sequence[Pack], tokenizer: Tokenizer, options: RowOptions, *, seed: int = 0) -> None:
        super().__init__(packs, tokenizer, options, seed, "tokens", packs[0].kind.rate)

    def _unusable(self, clip: Clip) -> str | None:
        return "no word times; `slipstream data align` finds them" if clip.text and not clip.words else None

    def _blank(self, pack: Pack) -> IntArray:
        late = pack.codec.tail if pack.codec else 0
        return np.tile(np.array(self.kind.silence, np.int64), (late, 1))

    def batch(self, first_row: int, rows: int) -> TokenBatch:
        """Rows `first_row` to `first_row + rows`."""
        drawn = [self._row(np.random.default_rng((self.seed, n))) for n in range(first_row, first_row + rows)]
        return TokenBatch(np.stack([row[0].T for row in drawn]), stack_targets([row[1] for row in drawn]))

    def _row(self, rng: np.random.Generator) -> tuple[IntArray, RowTargets]:
        T, rate = self.length, self.kind.rate
        delay = self._delay(rng)
        if self.options.sentences and rng.random() < self.data.text_share:
            codes = np.full((T, self.kind.width), NO_TOKEN, np.int64)
            return codes, self._targets(self._read(rng), (), delay, rng)
        codes = np.tile(np.array(self.kind.silence, np.int64), (T, 1))
        words: list[Word] = []
        kept: list[tuple[float, float]] = []
        clips = self._clips(rng)
        at = round(rng.uniform(0, 0.6) * rate)
        while at < T:
            content, clip = self._content(*next(clips), rng)
            skipped = int(rng.integers(0, max(1, len(content) - T)))
            rows = content[skipped : skipped + T - at]
            codes[at : at + len(rows)] = rows
            words += self._words(clip, (at - skipped) / rate, 1.0)
            if clip.dataset in self.data.replay:
                kept.append((at / rate, (at + len(rows)) / rate))
            at += len(rows) + self._gap(rng)
        return codes, self._targets([w for w in words if w.start < T / rate], (), delay, rng, kept)
