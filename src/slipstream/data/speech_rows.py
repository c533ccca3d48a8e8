"""Rows for text to speech: recordings of one speaker, their text as the state machine of a script gives it to a model.

Shapes: B rows, T steps (12.5 per second), K codebooks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np

from slipstream.arrays import BoolArray, FloatArray, IntArray
from slipstream.data.packs import Clip, Pack
from slipstream.data.rows import HOW_TO_PACK, RowOptions, Sampler
from slipstream.errors import ConfigError
from slipstream.events import Word
from slipstream.model.numerics import NO_TOKEN, UNGENERATED
from slipstream.model.script import Entry, ScriptMachine, ScriptReader, TokenIds, readable
from slipstream.model.text import Tokenizer
from slipstream.model.tts_config import TTSConfig

INITIAL_STEPS = 2
"""Steps before the first word, as in `SpeechOptions.initial_padding`."""
FINAL_FRAMES = 4
"""Frames after the last word, as in `SpeechOptions.final_padding`."""


@dataclass(frozen=True, slots=True)
class SpeechBatch:
    """What a model reads and writes in each step.

    `text_BT`: the text of a step, which the next one reads. `asked_BT`: what the model should write, `NEW_WORD` or PAD,
    `UNGENERATED` where the machine does not listen. `audio_BKT`: the audio tokens of a step, `NO_TOKEN` before their
    delay is over. `known_BKT`: those that the model learns. `draw_B`: a uniform number in [0, 1) for each row.
    """

    text_BT: IntArray
    asked_BT: IntArray
    audio_BKT: IntArray
    known_BKT: BoolArray
    draw_B: FloatArray


def script_steps(
    words: Sequence[Word], steps: int, config: TTSConfig, tokenizer: Tokenizer
) -> tuple[IntArray, IntArray]:
    """The text of each step, and what the model should write there (see `SpeechBatch`), `[T]` each.

    A word begins in the step of its start, or as soon as the tokens of those before are read. After the end of the last
    one the model asks once more, which ends a speech.
    """
    rate = config.codec.frame_rate
    ids = TokenIds(card=config.lm.text_vocab + 1)
    machine = ScriptMachine(ids, config.second_stream_ahead, max_padding=steps, initial_padding=INITIAL_STEPS)
    reader = ScriptReader(tokenizer, ids, rate, config.speakers_by_condition)
    timed: list[tuple[Entry, int]] = []
    for word in words:
        timed += [(entry, _frame(word.start, rate)) for entry in [*reader.feed(word.text), *reader.end()]]
    state = machine.new_state(entry for entry, _ in timed)
    starts = [start for _, start in timed] + [math.ceil(max((word.end for word in words), default=0) * rate - 1e-6)]
    text_T, asked_T = np.full(steps, ids.pad, np.int64), np.full(steps, UNGENERATED, np.int64)
    for step in range(steps):
        listens = not state.queued and state.forced_padding <= 0 and state.end_step is None
        token = ids.new_word if starts[len(state.consumption_times)] <= step else ids.pad
        if listens:
            asked_T[step] = token
        text_T[step], _ = machine.process(step, state, token)
    return text_T, asked_T


class SpeechSampler(Sampler):
    """Rows of codec tokens and their text; the n-th row depends on the seed and n alone.

    A row holds as many recordings of one dataset, language and speaker as fit, with pauses between them. One without a
    speaker is alone in its row.

    Tokens of a late encoder are moved to the audio that they hold: those before the first audio are left out.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        tokenizer: Tokenizer,
        options: RowOptions,
        config: TTSConfig,
        *,
        seed: int = 0,
    ) -> None:
        assert config.lm.depth is not None
        self.config, self.codebooks = config, config.lm.depth.num_codebooks
        self._delay_K = np.array(config.lm.stream_delays[1 : self.codebooks + 1]) + config.delay_steps
        self._after = int(self._delay_K.max()) + FINAL_FRAMES
        super().__init__(packs, tokenizer, options, seed, "tokens", config.codec.frame_rate)
        if self.kind.width < self.codebooks:
            raise ConfigError(f"data.packs hold {self.kind.width} codebooks, the model writes {self.codebooks}")

    def batch(self, first_row: int, rows: int) -> SpeechBatch:
        """Rows `first_row` to `first_row + rows`."""
        drawn = [self._row(np.random.default_rng((self.seed, n))) for n in range(first_row, first_row + rows)]
        text, asked, audio, known, draw = zip(*drawn, strict=True)
        return SpeechBatch(
            np.stack(text), np.stack(asked), np.stack(audio), np.stack(known), np.array(draw, np.float32)
        )

    def _unusable(self, clip: Clip) -> str | None:
        if not clip.words:
            return "no word times; `slipstream data align` finds them"
        if not self._words(clip, 0.0, 1.0):
            return "no word that can be read aloud"
        room = self.length - self._after - INITIAL_STEPS
        if room <= 0:
            taken = f"delays and silence take {(self._after + INITIAL_STEPS) / self.kind.rate:g} s"
            raise ConfigError(f"data.seconds={self.data.seconds:g} is too short: {taken}")
        too_long = f"longer than the {room / self.kind.rate:g} s that a row of {self.data.seconds:g} s has room for"
        return f"{too_long}; `slipstream data cut` cuts them at pauses" if clip.length > room else None

    def _admit_all(self, packs: Sequence[Pack]) -> None:
        late = self.config.codec.blank_frames
        for pack in packs:
            if (pack.codec.tail if pack.codec else 0) < late:
                raise ConfigError(
                    f"{pack.folder} lacks the ends of its recordings, because the tokens of this codec are "
                    f"{late / self.kind.rate:g} s late: make it again with {HOW_TO_PACK['tokens']}"
                )
        super()._admit_all(packs)
        self._voices: dict[tuple[str, str, str], list[tuple[Pack, Clip]]] = defaultdict(list)
        for pack, clip in (drawn for pool in self._pools.values() for drawn in pool):
            self._voices[clip.dataset, clip.language, clip.speaker].append((pack, clip))

    def _admit(self, pack: Pack, clip: Clip) -> None:
        codec = self.config.codec
        first = codec.first_sample / codec.sample_rate
        words = tuple((text, start - first, end - first) for text, start, end in clip.words)
        late = codec.blank_frames
        super()._admit(pack, replace(clip, start=clip.start + late, length=clip.length - late, words=words))

    def _following(self, clip: Clip, room: int, rng: np.random.Generator) -> tuple[Pack, Clip] | None:
        """A recording that continues a row after `clip`, of at most `room` frames."""
        voice = self._voices[clip.dataset, clip.language, clip.speaker] if clip.speaker else []
        return self._fitting((voice[int(rng.integers(len(voice)))] for _ in repeat(None)), room) if voice else None

    def _words(self, clip: Clip, start: float, factor: float) -> list[Word]:
        return [word for word in super()._words(clip, start, factor) if readable(word.text).strip()]

    def _row(self, rng: np.random.Generator) -> tuple[IntArray, IntArray, IntArray, BoolArray, float]:
        T, rate, K = self.length, self.kind.rate, self.codebooks
        canvas_FK = np.tile(np.array(self.kind.silence, np.int64), (T, 1))
        words: list[Word] = []
        at = end = 0
        drawn: tuple[Pack, Clip] | None = next(self._clips(rng))
        while drawn is not None:
            codes_FK, clip = self._content(*drawn, rng)
            own = sorted(self._words(clip, 0.0, 1.0), key=lambda word: word.start)
            if not end:
                # The first word begins in the first step that can have one: frames before it are cut, or silence added.
                at = INITIAL_STEPS - (_frame(own[0].start, rate) if own else 0)
            words += [Word(word.text, word.start + at / rate, word.end + at / rate) for word in own]
            laid = codes_FK[max(0, -at) :][: T - max(0, at)]
            canvas_FK[max(0, at) :][: len(laid)] = laid
            end = max(0, at) + len(laid)
            at = end + self._gap(rng)
            drawn = self._following(clip, T - self._after - at, rng)
        words.sort(key=lambda word: word.start)
        frames = max(end, math.ceil(words[-1].end * rate) if words else 0) + FINAL_FRAMES
        text_T, asked_T = script_steps(words, T, self.config, self.tokenizer)
        frame_KT = np.arange(T) - self._delay_K[:, None]
        audio_KT = np.where(frame_KT >= 0, np.take_along_axis(canvas_FK.T[:K], frame_KT.clip(0), axis=1), NO_TOKEN)
        return text_T, asked_T, audio_KT, (frame_KT >= 0) & (frame_KT < frames), float(rng.random())


def _frame(seconds: float, rate: float) -> int:
    """The frame of a time; one that was computed as frame / rate can be a rounding error before its own frame."""
    return math.floor(seconds * rate + 1e-6)
