"""What every row of training has: utterances drawn by dataset and language, pauses between them, targets of the LM.

Shapes: B rows, T frames (12.5 per second), H pause horizons.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slipstream.arrays import BoolArray, FloatArray, IntArray
from slipstream.data.options import DataOptions, SampleAugment
from slipstream.data.packs import Clip, Pack
from slipstream.data.phones import UNKNOWN
from slipstream.data.spectral import NO_AUGMENT
from slipstream.data.tokenizer import MOST_MISSING, lost_letters, plain_word, too_few_letters, writes_plain
from slipstream.errors import ConfigError
from slipstream.events import Word
from slipstream.model.config import PAD_ID, LMConfig
from slipstream.model.numerics import NO_TOKEN
from slipstream.model.text import Tokenizer, encode_stream

if TYPE_CHECKING:
    from typing_extensions import Self

HOW_TO_PACK = {
    "mel": "`slipstream data pack --config`",
    "tokens": "`slipstream data pack --model`",
    "samples": "`slipstream data pack --samples`",
}
_CHECKED = 2000
"""Texts of a language whose letters are compared with the vocabulary."""
PAUSE_HORIZONS = (0.5, 1.0, 2.0, 3.0)
"""Seconds that each pause head looks ahead."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What the LM learns of each row: `text_BT` the text stream (PAD where no word), `mask_BT` where it is known,
    `seen_BT` the stream as the LM reads it, with errors, `pause_BTH` classes, `delay_B` in frames. `draw_B`: a uniform
    number in [0, 1) for each row, for what else is drawn. `kept_BT`: the frames of the datasets `data.replay`."""

    text_BT: IntArray
    mask_BT: BoolArray
    pause_BTH: IntArray
    delay_B: IntArray
    seen_BT: IntArray
    draw_B: FloatArray
    kept_BT: BoolArray


def pause_labels(starts: Sequence[float], frames: int, frame_rate: float, classes: int) -> IntArray:
    """For each of `frames` and each horizon, 0 if no word starts within it, else 1 + how soon, `[T, H]`.

    Row t belongs to the output after t frames. The other `classes - 1` cut the horizon
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


def crop(
    rows: npt.NDArray[Any], clip: Clip, rate: float, rng: np.random.Generator, blank: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], Clip]:
    """A drawn run of the clip's words: its rows `[N', width]` of `[N, width]`, `rate` per second, and its text.

    Cuts are halfway between two words. A clip whose phones are known but not timed stays whole.

    `blank`, `[L, width]`: the first rows of a stream of a codec whose tokens are L rows late, empty for others. The
    crop begins with them, and then has the late rows of its words only.
    """
    late = len(blank)
    words = clip.words
    if len(words) < 2 or (clip.phone_sequence and not clip.phones):
        return rows, clip
    first = int(rng.integers(len(words)))
    last = int(rng.integers(first, len(words)))
    start = (words[first - 1][2] + words[first][1]) / 2 if first else 0.0
    end = (words[last][2] + words[last + 1][1]) / 2 if last + 1 < len(words) else (len(rows) - late) / rate
    begin, finish = round(start * rate), round(end * rate)
    if finish - begin < 2:
        return rows, clip
    cropped = tuple((text, a - start, b - start) for text, a, b in words[first : last + 1])
    phones = tuple((name, at - start) for name, at in clip.phones if start <= at < end)
    text = " ".join(word[0] for word in cropped)
    taken = np.concatenate([blank, rows[begin + late : finish + late]]) if late else rows[begin:finish]
    return taken, replace(clip, length=len(taken), text=text, words=cropped, phones=phones)


def misread(text_T: IntArray, hidden: float, errors: float, rng: np.random.Generator) -> IntArray:
    """The text stream as the LM reads it: a share `hidden` of it as `NO_TOKEN`, a share `errors` of the words' tokens
    replaced by other tokens of the row.

    In use the LM reads what it wrote, errors included. A model that only ever read correct text follows its errors.
    """
    seen: IntArray = text_T.copy()
    spoken = np.flatnonzero(text_T > PAD_ID)
    if len(spoken) and errors:
        wrong = spoken[rng.random(len(spoken)) < errors]
        seen[wrong] = rng.choice(text_T[spoken], len(wrong))
    seen[rng.random(len(seen)) < hidden] = NO_TOKEN
    return seen


@dataclass(frozen=True, slots=True)
class RowOptions:
    """How rows are laid out: `data` with what it leaves to the model, resolved.

    delay: the two bounds, in frames, between which the delay of each row is drawn. pause_classes: of the pause heads.
    sentences: the texts of `data.texts`.
    """

    data: DataOptions
    delay: tuple[int, int]
    pause_classes: int = LMConfig.model_fields["pause_classes"].default
    sentences: Sequence[str] = ()


class Sampler(ABC):
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
        self.options, self.data, self.tokenizer = options, options.data, tokenizer
        self.seed, self.frame_rate = seed, frame_rate
        kinds = {pack.kind for pack in packs}
        if len(kinds) != 1 or next(iter(kinds)).kind != kind:
            held = ", ".join(sorted(k.kind for k in kinds))
            raise ConfigError(f"data.packs hold {held}: this run reads {kind} of one kind ({HOW_TO_PACK[kind]})")
        self.kind = kinds.pop()
        self.length = round(self.data.seconds * self.kind.rate)
        self._packs = packs
        self.plain = writes_plain(tokenizer) if self.data.plain_text is None else self.data.plain_text
        self._admit_all(packs)
        self._weigh()

    def held_out(self, packs: Sequence[Pack]) -> Self:
        """The same kind of rows from other packs, in which each recording is as likely as another; not augmented."""
        counts = Counter(clip.dataset for pack in packs for clip in pack.clips)
        if {pack.kind for pack in packs} != {self.kind}:
            raise ConfigError("data.valid.packs must hold what data.packs hold, of the same kind")
        plain = {"weights": dict(counts), "text_share": 0.0, "text_mask": 0.0, "text_errors": 0.0, "crop": {}}
        effects = SampleAugment(reverb=0, noise=0, telephone=0, clip=0, gain=0, speed=1)
        plain |= {"augment": NO_AUGMENT, "augment_samples": effects}
        other = self.changed(self.data.model_copy(update=plain), packs)
        other.seed = 0
        return other

    def changed(self, data: DataOptions, packs: Sequence[Pack] | None = None) -> Self:
        """The same kind of rows by other options, from the same packs or others."""
        other = copy.copy(self)
        other.data = data
        if packs is not None:
            other._packs = packs
        other._admit_all(other._packs)
        other._weigh()
        other._augment_by(data)
        return other

    def _augment_by(self, data: DataOptions) -> None:  # noqa: B027
        """Take the augmentation of samples from other options; for rows of samples."""

    def _admit_all(self, packs: Sequence[Pack]) -> None:
        self.timed = self.untimed = 0
        self._left_out: Counter[str] = Counter()
        self._pools: dict[tuple[str, str], list[tuple[Pack, Clip]]] = {}
        for pack in packs:
            for clip in pack.clips:
                if clip.dataset in self.data.weights:
                    self._admit(pack, clip)
        missing = sorted(set(self.data.weights) - {dataset for dataset, _ in self._pools})
        if missing:
            there = ", ".join(sorted({clip.dataset for pack in packs for clip in pack.clips}))
            problem = f"data.weights names {', '.join(missing)}, but the packs ({there}) hold no usable clip of it"
            raise ConfigError("; ".join([problem, *self.remarks()]))
        self._check_letters()

    def _weigh(self) -> None:
        """How likely each dataset and language is."""
        self._keys = list(self._pools)
        languages = Counter(dataset for dataset, _ in self._keys)
        weights = np.array([self.data.weights[dataset] / languages[dataset] for dataset, _ in self._keys])
        self._probabilities = weights / weights.sum()

    def _check_letters(self) -> None:
        """Raise `ConfigError` if the vocabulary cannot write a language of the clips."""
        for language in sorted({language for _, language in self._pools}):
            clips = [clip for key, pool in self._pools.items() if key[1] == language for _, clip in pool]
            texts = (clip.text for clip in clips[:: 1 + len(clips) // _CHECKED])
            lost = lost_letters(texts, self.tokenizer, self.plain, language)
            if lost.share > MOST_MISSING:
                raise ConfigError(f"data.tokenizer: {too_few_letters(lost, language)}")

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
    def batch(self, first_row: int, rows: int) -> Any:
        """Rows `first_row` to `first_row + rows`."""

    def _unusable(self, clip: Clip) -> str | None:
        """Why the clip cannot be drawn, if it cannot; by default that it does not fit into a row."""
        if clip.length <= self.length:
            return None
        return f"longer than a row of {self.data.seconds:g} s; `slipstream data cut` cuts them at pauses"

    def _clips(self, rng: np.random.Generator) -> Iterator[tuple[Pack, Clip]]:
        """Clips without end, mostly in the language of the one before."""
        key = self._keys[int(rng.choice(len(self._keys), p=self._probabilities))]
        while True:
            pool = self._pools[key]
            yield pool[int(rng.integers(len(pool)))]
            if rng.random() > self.data.same_language:
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
        """The clip's rows and texts; of a cropped clip, those of some of its words."""
        rows, share = pack.rows(clip), self.data.crop.get(clip.dataset, 0.0)
        if not share or rng.random() >= share:
            return rows, clip
        return crop(rows, clip, self.kind.rate, rng, self._blank(pack))

    def _blank(self, pack: Pack) -> npt.NDArray[Any]:
        """The rows `[L, width]` of a stream before its first audio, for tokens that are L rows late."""
        return np.zeros((0, self.kind.width))

    def _gap(self, rng: np.random.Generator) -> int:
        bounds = self.data.gaps[int(rng.choice(len(self.data.gaps), p=self.data.gap_shares))]
        return round(rng.uniform(*bounds) * self.kind.rate)

    def _delay(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.options.delay[0], self.options.delay[1] + 1))

    def _words(self, clip: Clip, start: float, factor: float) -> list[Word]:
        words = ((plain_word(text, clip.language) if self.plain else text, a, b) for text, a, b in clip.words)
        return [Word(text, start + a / factor, start + b / factor) for text, a, b in words if text]

    def _read(self, rng: np.random.Generator) -> list[Word]:
        """Sentences of `options.sentences` for a row, with times as if read: a word lasts as long as its letters."""
        words: list[Word] = []
        at = rng.uniform(0, 0.6)
        while at < self.data.seconds:
            letter = rng.uniform(0.05, 0.1)
            for text in self.options.sentences[int(rng.integers(len(self.options.sentences)))].split():
                plain = plain_word(text) if self.plain else text
                end = at + letter * (1 + len(text))
                if plain and at < self.data.seconds:
                    words.append(Word(plain, at, end))
                at = end
            at += self._gap(rng) / self.kind.rate
        return words

    def _targets(
        self,
        words: Sequence[Word],
        unknown: Sequence[tuple[float, float]],
        delay: int,
        rng: np.random.Generator,
        kept: Sequence[tuple[float, float]] = (),
    ) -> RowTargets:
        """Text stream and pause classes of a row; `unknown` are stretches of seconds whose words have no times, `kept`
        those of `data.replay`."""
        T = round(self.data.seconds * self.frame_rate)
        mask = np.ones(T, np.bool_)
        for start, end in unknown:
            # Their text would come `delay` later, and might take a second more to be written.
            mask[math.floor(start * self.frame_rate) : math.ceil((end + 1) * self.frame_rate) + delay] = False
        heard = [word for word in words if word.start >= 0]
        pause = pause_labels([word.start for word in heard], T, self.frame_rate, self.options.pause_classes)
        pause[~mask] = UNKNOWN
        text = encode_stream(heard, self.tokenizer, delay, T, self.frame_rate)
        seen = misread(text, self.data.text_mask, self.data.text_errors, rng)
        keep = np.full(T, not self.data.replay)
        for start, end in kept:
            keep[math.floor(start * self.frame_rate) : math.ceil(end * self.frame_rate) + delay] = True
        return RowTargets(text, mask, pause, delay, seen, float(rng.random()), keep)


@dataclass(frozen=True, slots=True)
class RowTargets:
    text_T: IntArray
    mask_T: BoolArray
    pause_TH: IntArray
    delay: int
    seen_T: IntArray
    draw: float
    kept_T: BoolArray


def stack_targets(targets: Sequence[RowTargets]) -> Targets:
    return Targets(
        np.stack([t.text_T for t in targets]),
        np.stack([t.mask_T for t in targets]),
        np.stack([t.pause_TH for t in targets]),
        np.array([t.delay for t in targets]),
        np.stack([t.seen_T for t in targets]),
        np.array([t.draw for t in targets], np.float32),
        np.stack([t.kept_T for t in targets]),
    )
