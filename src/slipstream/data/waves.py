"""Rows of waveforms: utterances drawn from packs of samples, in rooms and noise, with their texts.

Shapes: B rows, S samples. A row depends on the seed and its number alone, as all rows do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slipstream.arrays import BoolArray, FloatArray, IntArray
from slipstream.data.augment import RowNoise, WaveAugment, resample_speech
from slipstream.data.options import DataOptions, SampleAugment
from slipstream.data.packs import Clip, Pack
from slipstream.data.phones import UNKNOWN, PhoneInventory
from slipstream.data.rows import RowOptions, RowTargets, Sampler, Targets, stack_targets
from slipstream.data.tokenizer import plain_text
from slipstream.errors import ConfigError
from slipstream.events import Word
from slipstream.model.config import PAD_ID
from slipstream.model.text import Tokenizer


def wave_effects(augment: SampleAugment) -> tuple[WaveAugment, RowNoise, float]:
    """What is done to an utterance and to a row, and the largest factor of speed."""
    sounds = Pack(augment.sounds).samples() if augment.sounds else None
    effects = augment.model_copy(update={"noise": 0.0})
    return effects, RowNoise(augment.noise, augment.snr_db, sounds), augment.speed


def _rms(samples: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(samples))))


@dataclass(frozen=True, slots=True)
class WaveBatch:
    """Rows as spoken (`clean_BS`) and with a room, noise and a line (`heard_BS`), at the pack's rate.

    `sequence` and `lengths_B`: the text tokens of each row for CTC, concatenated (0 is the blank, so token t is t + 1).
    `labelled_B`: rows in which every utterance has a text. `phones_BP`: framewise phone numbers, `UNKNOWN` where no
    times are known. `spoken_BT`: the text token that is being spoken in each frame, PAD between words.
    `textual_B`: rows of text alone, without audio.
    """

    clean_BS: FloatArray
    heard_BS: FloatArray
    targets: Targets
    sequence: IntArray
    lengths_B: IntArray
    labelled_B: BoolArray
    phones_BP: IntArray
    spoken_BT: IntArray
    textual_B: BoolArray


@dataclass(frozen=True, slots=True)
class _Row:
    clean: FloatArray
    heard: FloatArray
    tokens: list[int]
    labelled: bool
    phones: IntArray
    spoken: IntArray
    textual: bool = False


class WaveSampler(Sampler):
    """Rows of waveforms from packs of samples.

    Args:
        effects: what is done to each utterance; `speed` is the largest factor of its tempo and pitch.
        noise: what is added to each row.
        phones: the inventory of the framewise labels, or None for rows without them.
        phone_rate: labels a second.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        tokenizer: Tokenizer,
        options: RowOptions,
        *,
        effects: WaveAugment,
        noise: RowNoise,
        speed: float = 1.18,
        phones: PhoneInventory | None = None,
        phone_rate: float = 50.0,
        frame_rate: float = 12.5,
        seed: int = 0,
    ) -> None:
        super().__init__(packs, tokenizer, options, seed, "samples", frame_rate)
        self.effects, self.noise, self.speed = effects, noise, speed
        self.phones, self.phone_rate = phones, phone_rate
        if len(rates := {pack.kind.rate for pack in packs}) > 1:
            raise ConfigError(f"data.packs: their samples have several rates: {', '.join(map(str, sorted(rates)))}")

    def _augment_by(self, data: DataOptions) -> None:
        self.effects, self.noise, self.speed = wave_effects(data.augment_samples or SampleAugment())

    def batch(self, first_row: int, rows: int) -> WaveBatch:
        """Rows `first_row` to `first_row + rows`."""
        drawn = [self._row(np.random.default_rng((self.seed, n))) for n in range(first_row, first_row + rows)]
        waves = [wave for wave, _ in drawn]
        return WaveBatch(
            np.stack([wave.clean for wave in waves]),
            np.stack([wave.heard for wave in waves]),
            stack_targets([targets for _, targets in drawn]),
            np.concatenate([np.array(wave.tokens, np.int64) for wave in waves]),
            np.array([len(wave.tokens) for wave in waves]),
            np.array([wave.labelled for wave in waves]),
            np.stack([wave.phones for wave in waves]),
            np.stack([wave.spoken for wave in waves]),
            np.array([wave.textual for wave in waves]),
        )

    def clean(self, first_row: int, rows: int) -> FloatArray:
        """The samples `[B, S]` of rows as spoken, without room and noise."""
        return self.batch(first_row, rows).clean_BS

    def _row(self, rng: np.random.Generator) -> tuple[_Row, RowTargets]:
        rate, length = round(self.kind.rate), self.length
        clean, heard = np.zeros(length, np.float32), np.zeros(length, np.float32)
        words: list[Word] = []
        unknown: list[tuple[float, float]] = []
        kept: list[tuple[float, float]] = []
        tokens: list[int] = []
        labels = np.full(round(self.data.seconds * self.phone_rate), UNKNOWN, np.int64)
        if self.options.sentences and rng.random() < self.data.text_share:
            silent = _Row(clean, heard, [], False, labels, self._spoken([]), textual=True)
            return silent, self._targets(self._read(rng), (), self._delay(rng), rng)
        augment = self.data.augment_samples
        if augment is not None and augment.sounds_alone and rng.random() < augment.sounds_alone:
            sounds = _Row(clean, self.noise.alone(length, rng), [], False, labels, self._spoken([]))
            return sounds, self._targets([], (), self._delay(rng), rng)
        labelled = True
        spoken = 0
        clips = self._clips(rng)
        at = round(rng.uniform(0, 0.6) * rate)
        while at < length and (drawn := self._fitting(clips, (length - at) / self.speed)) is not None:
            content, clip = self._content(*drawn, rng)
            factor = float(np.exp(rng.uniform(-1, 1) * np.log(self.speed))) if rng.random() < 0.5 else 1.0
            samples = content[:, 0] / np.float32(32768)
            if factor != 1:
                samples = resample_speech(samples, rate, factor, rate)
            samples = samples[: length - at]
            end = at + len(samples)
            clean[at:end], heard[at:end] = self.effects.pair(samples, rate, rng)
            spoken += len(samples)
            words += self._words(clip, at / rate, factor)
            if clip.text and not clip.words:
                unknown.append((at / rate, end / rate))
            if clip.dataset in self.data.replay:
                kept.append((at / rate, end / rate))
            text = plain_text(clip.text, clip.language) if self.plain else clip.text
            tokens += [token + 1 for token in self.tokenizer.encode(text)] if text else []
            labelled = labelled and bool(clip.text)
            self._label(labels, clip, at / rate, end / rate, factor)
            at = end + self._gap(rng)
        if spoken:
            level = float(np.sqrt(np.square(heard).sum() / spoken))
            heard = self.noise(self._under(heard, level, rng), level, rng)
        row = _Row(clean, np.clip(heard, -1, 1), tokens, labelled and bool(tokens), labels, self._spoken(words))
        return row, self._targets(words, unknown, self._delay(rng), rng, kept)

    def _under(self, heard: FloatArray, level: float, rng: np.random.Generator) -> FloatArray:
        """The row with another speaker under it, if that is drawn; `level`: root mean square of its speech."""
        augment = self.data.augment_samples
        if augment is None or not augment.overlap or rng.random() >= augment.overlap:
            return heard
        drawn = self._fitting(self._clips(rng), len(heard))
        if drawn is None:
            return heard
        other = drawn[0].rows(drawn[1])[:, 0]
        other = other * np.float32(10 ** (-rng.uniform(*augment.overlap_db) / 20) * level / (_rms(other) + 1e-9))
        start = int(rng.integers(len(heard) - len(other) + 1))
        mixed: FloatArray = heard.copy()
        mixed[start : start + len(other)] += other
        return mixed

    def _spoken(self, words: Sequence[Word]) -> IntArray:
        """The tokens of each word spread evenly over its time."""
        tokens = np.full(round(self.data.seconds * self.frame_rate), PAD_ID, np.int64)
        for word in words:
            pieces = self.tokenizer.encode(word.text)
            edges = np.linspace(word.start, max(word.end, word.start + 1 / self.frame_rate), len(pieces) + 1)
            cuts = np.round(edges * self.frame_rate).astype(int).clip(min=0)
            for piece, begin, end in zip(pieces, cuts, cuts[1:], strict=False):
                tokens[begin:end] = piece
        return tokens

    def _label(self, labels: IntArray, clip: Clip, start: float, end: float, factor: float) -> None:
        if self.phones is None or not clip.phones:
            return
        times = [start + t / factor for _, t in clip.phones] + [end]
        for (name, _), begin, finish in zip(clip.phones, times, times[1:], strict=False):
            labels[round(begin * self.phone_rate) : round(finish * self.phone_rate)] = self.phones.number(name)
