"""Rows of training: utterances drawn from packs, augmented, laid one after the other with pauses between.

Shapes: B rows, F log-mel frames (100 a second), P codec positions (25 a second), T frames (12.5 a second), M bands.
A row is as long as it is asked to be, whatever the utterances' lengths: nothing is padded away, and the model hears
pauses and several utterances in one stream, as it will in use.
"""

from __future__ import annotations

import math
import queue
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from slipstream.arrays import BoolArray, FloatArray, IntArray
from slipstream.data.packs import Clip, Pack
from slipstream.data.phones import UNKNOWN, PhoneInventory
from slipstream.data.spectral import FLOOR, NO_AUGMENT, SpectralAugment, from_log_power, to_log_power
from slipstream.data.tokenizer import plain_word
from slipstream.errors import ConfigError
from slipstream.events import Word
from slipstream.model.text import Tokenizer, encode_stream

_Drawn = TypeVar("_Drawn")
HOW_TO_PACK = {
    "mel": "`slipstream data pack --config`",
    "tokens": "`slipstream data pack --model`",
}
PAUSE_HORIZONS = (0.5, 1.0, 2.0, 3.0)
"""Seconds that each pause head looks ahead."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What the LM learns of each row: `text_BT` the text stream (PAD where no word), `mask_BT` where it is known,
    `hidden_BT` where the LM is not to see it, `pause_BTH` classes, `delay_B` in frames. `draw_B`: a uniform number in
    [0, 1) for each row, for what else is drawn."""

    text_BT: IntArray
    mask_BT: BoolArray
    pause_BTH: IntArray
    delay_B: IntArray
    hidden_BT: BoolArray
    draw_B: FloatArray


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


def pause_labels(starts: Sequence[float], frames: int, frame_rate: float, classes: int) -> IntArray:
    """For each of `frames` and each horizon, 0 if no word starts within it, else 1 + how soon, `[T, H]`.

    Row t goes with the output that has heard t frames. The other `classes - 1` cut the horizon
    into equal parts.
    """
    now = np.arange(frames) / frame_rate
    following = np.append(np.sort(np.asarray(starts, np.float64)), np.inf)
    wait = following[np.searchsorted(following, now, side="right").clip(max=len(following) - 1)] - now
    labels = np.zeros((frames, len(PAUSE_HORIZONS)), np.int64)
    for h, horizon in enumerate(PAUSE_HORIZONS):
        soon = wait <= horizon
        labels[soon, h] = 1 + np.minimum((wait[soon] / horizon * (classes - 1)).astype(np.int64), classes - 2)
    return labels


def crop(rows: npt.NDArray[Any], clip: Clip, rate: float, rng: np.random.Generator) -> tuple[npt.NDArray[Any], Clip]:
    """A drawn run of the clip's words: its rows `[N', width]` of `[N, width]`, `rate` a second, and what is said there.

    Cuts lie halfway between two words. A clip whose phones are known but not timed stays whole.
    """
    words = clip.words
    if len(words) < 2 or (clip.phone_sequence and not clip.phones):
        return rows, clip
    first = int(rng.integers(len(words)))
    last = int(rng.integers(first, len(words)))
    start = (words[first - 1][2] + words[first][1]) / 2 if first else 0.0
    end = (words[last][2] + words[last + 1][1]) / 2 if last + 1 < len(words) else len(rows) / rate
    begin, finish = round(start * rate), round(end * rate)
    if finish - begin < 2:
        return rows, clip
    said = tuple((text, a - start, b - start) for text, a, b in words[first : last + 1])
    phones = tuple((name, at - start) for name, at in clip.phones if start <= at < end)
    text = " ".join(word[0] for word in said)
    return rows[begin:finish], replace(clip, length=finish - begin, text=text, words=said, phones=phones)


@dataclass(frozen=True, slots=True)
class RowOptions:
    """How rows are laid out.

    `seconds` long; `weights` say how often each dataset is drawn from (others never); `delay` in frames is drawn from
    between its two bounds for each row; `gaps` are ranges of seconds between utterances, drawn by `gap_shares`;
    `same_language` is how often the next utterance keeps the language; `text_mask` the share of text tokens hidden from
    the LM; `plain` writes words by `plain_word`. `crop`: by dataset, how often only a run of a clip's words is taken,
    so that a small set of sentences is not learnt by heart.
    """

    seconds: float
    weights: Mapping[str, float]
    delay: tuple[int, int]
    gaps: tuple[tuple[float, float], ...] = ((0.08, 0.6), (0.6, 1.5), (1.5, 3.8))
    gap_shares: tuple[float, ...] = (0.62, 0.28, 0.1)
    same_language: float = 0.85
    text_mask: float = 0.1
    plain: bool = True
    pause_classes: int = 6
    augment: SpectralAugment = NO_AUGMENT
    crop: Mapping[str, float] = field(default_factory=dict)


class _Sampler(ABC):
    """Draws clips by dataset and language, and turns what was drawn into the targets that every row has.

    `timed`, `untimed`: how many of its clips that have a text have their words' times, and have not.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        tokenizer: Tokenizer,
        options: RowOptions,
        seed: int,
        kind: str,
        frame_rate: float,
    ) -> None:
        self.options, self.tokenizer, self.seed, self.frame_rate = options, tokenizer, seed, frame_rate
        kinds = {pack.kind for pack in packs}
        if len(kinds) != 1 or next(iter(kinds)).kind != kind:
            held = ", ".join(sorted(k.kind for k in kinds))
            raise ConfigError(f"data.packs hold {held}: this run reads {kind} of one kind ({HOW_TO_PACK[kind]})")
        self.kind = kinds.pop()
        self.length = round(options.seconds * self.kind.rate)
        self.timed = self.untimed = 0
        self._left_out: Counter[str] = Counter()
        self._pools: dict[tuple[str, str], list[tuple[Pack, Clip]]] = {}
        for pack in packs:
            for clip in pack.clips:
                if clip.dataset in options.weights:
                    self._admit(pack, clip)
        missing = sorted(set(options.weights) - {dataset for dataset, _ in self._pools})
        if missing:
            there = ", ".join(sorted({clip.dataset for pack in packs for clip in pack.clips}))
            said = f"data.weights names {', '.join(missing)}, but the packs ({there}) hold no usable clip of it"
            raise ConfigError("; ".join([said, *self.remarks()]))
        self._keys = list(self._pools)
        languages = Counter(dataset for dataset, _ in self._keys)
        weights = np.array([options.weights[dataset] / languages[dataset] for dataset, _ in self._keys])
        self._probabilities = weights / weights.sum()

    def remarks(self) -> list[str]:
        """How many clips were left out, and why."""
        return [f"{count} clips left out: {reason}" for reason, count in self._left_out.items()]

    def _admit(self, pack: Pack, clip: Clip) -> None:
        if (reason := self._unusable(clip)) is not None:
            self._left_out[reason] += 1
            return
        self._pools.setdefault((clip.dataset, clip.language), []).append((pack, clip))
        self.timed += bool(clip.words)
        self.untimed += bool(clip.text and not clip.words)

    @abstractmethod
    def _unusable(self, clip: Clip) -> str | None:
        """Why the clip cannot be drawn, if it cannot."""

    def _clips(self, rng: np.random.Generator) -> Iterator[tuple[Pack, Clip]]:
        """Clips without end, mostly in the language of the one before."""
        key = self._keys[int(rng.choice(len(self._keys), p=self._probabilities))]
        while True:
            pool = self._pools[key]
            yield pool[int(rng.integers(len(pool)))]
            if rng.random() > self.options.same_language:
                same = list(range(len(self._keys)))
            else:
                same = [i for i, other in enumerate(self._keys) if other[1] == key[1]]
            weights = self._probabilities[same]
            key = self._keys[same[int(rng.choice(len(same), p=weights / weights.sum()))]]

    def _fitting(self, clips: Iterator[tuple[Pack, Clip]], room: float) -> tuple[Pack, Clip] | None:
        """The first of the next dozen clips that fits into `room` rows of the pack."""
        for _ in range(12):
            pack, clip = next(clips)
            if clip.length <= room:
                return pack, clip
        return None

    def _content(self, pack: Pack, clip: Clip, rng: np.random.Generator) -> tuple[npt.NDArray[Any], Clip]:
        """The clip's rows and what is said in them; of a clip that is cropped, those of some of its words."""
        rows, share = pack.rows(clip), self.options.crop.get(clip.dataset, 0.0)
        if not share or rng.random() >= share:
            return rows, clip
        return crop(rows, clip, self.kind.rate, rng)

    def _gap(self, rng: np.random.Generator) -> int:
        bounds = self.options.gaps[int(rng.choice(len(self.options.gaps), p=self.options.gap_shares))]
        return round(rng.uniform(*bounds) * self.kind.rate)

    def _delay(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.options.delay[0], self.options.delay[1] + 1))

    def _words(self, clip: Clip, start: float, factor: float) -> list[Word]:
        words = ((plain_word(text) if self.options.plain else text, a, b) for text, a, b in clip.words)
        return [Word(text, start + a / factor, start + b / factor) for text, a, b in words if text]

    def _targets(
        self,
        words: Sequence[Word],
        unknown: Sequence[tuple[float, float]],
        delay: int,
        rng: np.random.Generator,
    ) -> _Targets:
        """Text stream and pause classes of a row; `unknown` are stretches of seconds whose words have no times."""
        T = round(self.options.seconds * self.frame_rate)
        mask = np.ones(T, np.bool_)
        for start, end in unknown:
            # Their text would come `delay` later, and might take a second more to be written.
            mask[math.floor(start * self.frame_rate) : math.ceil((end + 1) * self.frame_rate) + delay] = False
        heard = [word for word in words if word.start >= 0]
        pause = pause_labels([word.start for word in heard], T, self.frame_rate, self.options.pause_classes)
        pause[~mask] = UNKNOWN
        return _Targets(
            encode_stream(heard, self.tokenizer, delay, T, self.frame_rate),
            mask,
            pause,
            delay,
            rng.random(T) < self.options.text_mask,
            float(rng.random()),
        )


@dataclass(frozen=True, slots=True)
class _Targets:
    text_T: IntArray
    mask_T: BoolArray
    pause_TH: IntArray
    delay: int
    hidden_T: BoolArray
    draw: float


def _stack(targets: Sequence[_Targets]) -> Targets:
    return Targets(
        np.stack([t.text_T for t in targets]),
        np.stack([t.mask_T for t in targets]),
        np.stack([t.pause_TH for t in targets]),
        np.array([t.delay for t in targets]),
        np.stack([t.hidden_T for t in targets]),
        np.array([t.draw for t in targets], np.float32),
    )


class RowSampler(_Sampler):
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

    def _unusable(self, clip: Clip) -> str | None:
        seconds = self.options.seconds
        too_long = f"longer than a row of {seconds:g} s; `slipstream data cut` cuts them at pauses"
        return too_long if clip.length > self.length else None

    def batch(self, first_row: int, rows: int) -> Batch:
        """Rows `first_row` to `first_row + rows`."""
        drawn = [self._row(np.random.default_rng((self.seed, n))) for n in range(first_row, first_row + rows)]
        return Batch(
            np.stack([row[0] for row in drawn]),
            _stack([row[1] for row in drawn]),
            np.stack([row[2] for row in drawn]),
            np.concatenate([row[3] for row in drawn]),
            np.array([len(row[3]) for row in drawn]),
        )

    def _row(self, rng: np.random.Generator) -> tuple[FloatArray, _Targets, IntArray, IntArray]:
        options, F, rate = self.options, self.length, self.kind.rate
        delay = self._delay(rng)
        canvas = np.full((F, self.kind.width), FLOOR, np.float32)
        labels = np.zeros(round(options.seconds * self.phone_rate), np.int64)
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
            log_power, factor = options.augment.utterance(to_log_power(content), rng)
            log_power = log_power[: F - at]
            self._lay(canvas, at, log_power, rng)
            levels.append(float(np.log(np.mean(np.exp(log_power)) + 1e-9)))
            start, end = at / rate, (at + len(log_power)) / rate
            words += self._words(clip, start, factor)
            if clip.text and not clip.words:
                unknown.append((start, end))
            self._label(labels, sequence, clip, start, end, factor)
            at += len(log_power) + self._gap(rng)
            drawn = self._fitting(clips, (F - at) / options.augment.speed) if F - at >= rate else None
        row = options.augment.mask(options.augment.row(canvas, float(np.mean(levels)), rng), rng)
        targets = self._targets(words, unknown, delay, rng)
        return from_log_power(row), targets, labels, np.array(sequence, np.int64)

    def _lay(self, canvas: FloatArray, at: int, log_power: FloatArray, rng: np.random.Generator) -> None:
        """Lay an utterance down; half of the time its own background goes on from there to the end of the row."""
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


class TokenSampler(_Sampler):
    """Rows of codec tokens; a clip longer than a row is entered at a drawn place. As deterministic as `RowSampler`."""

    def __init__(self, packs: Sequence[Pack], tokenizer: Tokenizer, options: RowOptions, *, seed: int = 0) -> None:
        super().__init__(packs, tokenizer, options, seed, "tokens", packs[0].kind.rate)

    def _unusable(self, clip: Clip) -> str | None:
        return "no word times; `slipstream data align` finds them" if clip.text and not clip.words else None

    def batch(self, first_row: int, rows: int) -> TokenBatch:
        """Rows `first_row` to `first_row + rows`."""
        drawn = [self._row(np.random.default_rng((self.seed, n))) for n in range(first_row, first_row + rows)]
        return TokenBatch(np.stack([row[0].T for row in drawn]), _stack([row[1] for row in drawn]))

    def _row(self, rng: np.random.Generator) -> tuple[IntArray, _Targets]:
        T, rate = self.length, self.kind.rate
        delay = self._delay(rng)
        codes = np.tile(np.array(self.kind.silence, np.int64), (T, 1))
        words: list[Word] = []
        clips = self._clips(rng)
        at = round(rng.uniform(0, 0.6) * rate)
        while at < T:
            content, clip = self._content(*next(clips), rng)
            skipped = int(rng.integers(0, max(1, len(content) - T)))
            rows = content[skipped : skipped + T - at]
            codes[at : at + len(rows)] = rows
            words += self._words(clip, (at - skipped) / rate, 1.0)
            at += len(rows) + self._gap(rng)
        return codes, self._targets([w for w in words if w.start < T / rate], (), delay, rng)


def prefetch(
    draw: Callable[[int], _Drawn], first_row: int, stride: int, depth: int = 4
) -> Generator[_Drawn, None, None]:
    """`draw(first_row)`, `draw(first_row + stride)`, ... by a thread, ahead of use. Closing it ends the thread."""
    ready: queue.Queue[_Drawn | BaseException] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: _Drawn | BaseException) -> None:
        while not closed.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.2)
                return

    def work() -> None:
        row = first_row
        try:
            while not closed.is_set():
                put(draw(row))
                row += stride
        except BaseException as error:
            put(error)

    worker = threading.Thread(target=work, daemon=True, name="sampler")
    worker.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        with suppress(queue.Empty):
            ready.get_nowait()  # wakes it, if it waits for room
        worker.join()  # a thread that the interpreter's end meets in C++ code aborts the process
