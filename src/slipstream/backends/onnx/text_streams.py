"""The state of the LM's `slots` streams in fixed buffers, and one step over them.

Shapes: B slots, T positions in a step, K codebooks, L layers, H heads, d head width, C columns, V text vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import onnxruntime

from slipstream.arrays import BoolArray, IntArray
from slipstream.backends.onnx.buffers import Rotary, key_values, layer_arrays
from slipstream.backends.onnx.graph import Array
from slipstream.backends.onnx.inference import Bound, input_type
from slipstream.model.config import PAD_ID, LMConfig, TransformerConfig
from slipstream.model.numerics import is_text, ring_keys


class TextStreams(ABC):
    """An LM over B streams, which reads `codes_BK` where the codec writes them.

    `text_B`: the token that each stream reads next. `delay_B`: the value of the condition; NaN for the model's own.
    """

    def __init__(self, config: LMConfig, slots: int, codes_BK: IntArray) -> None:
        self.config = config
        self.text_B = np.zeros(slots, np.int64)
        self.delay_B = np.full(slots, np.nan, np.float32)
        self.codes_BK = codes_BK
        self.logits_BV = np.zeros((slots, config.text_vocab), np.float32)
        self.pause_BH = np.zeros((slots, config.pause_heads), np.float32)
        self._heads: dict[str, Array] = {"logits": self.logits_BV}
        if config.pause_heads:
            self._heads["pause"] = self.pause_BH

    @abstractmethod
    def step(self, position_B: IntArray, active_B: BoolArray) -> None:
        """Read the tokens of the first slots, which are at `position_B`, and advance the active ones of them."""

    def copy_text(self, source: int, target: int, position: int) -> None:
        """Copy what a slot keeps of its text into one with the same audio. The next position of both is `position`."""
        self.write(target, self.read(source, position))

    @abstractmethod
    def read(self, slot: int, position: int) -> Mapping[str, Array]:
        """Copy what a slot keeps, whose next position is `position`."""

    @abstractmethod
    def write(self, slot: int, saved: Mapping[str, Array]) -> None:
        """Put a copy into a slot."""


def text_streams(
    config: LMConfig, session: onnxruntime.InferenceSession, slots: int, codes_BK: IntArray
) -> TextStreams:
    """The streams of an LM of either kind."""
    return (DecoderStreams if config.whisper else LMStreams)(config, session, slots, codes_BK)


class LMStreams(TextStreams):
    """A causal Transformer over B streams.

    When the other columns of a cache are full, a step writes its key into the last one. The others are a ring of the
    positions before it. A step moves the newest key of an active slot there, over the oldest.
    """

    def __init__(self, config: LMConfig, session: onnxruntime.InferenceSession, slots: int, codes_BK: IntArray) -> None:
        super().__init__(config, slots, codes_BK)
        self._older = config.transformer.context - 1
        self._rotary = Rotary(config.transformer, slots, 1)
        self._length_B = np.zeros(slots, np.int32)
        self._longest = np.zeros(1, np.int32)
        dtype = input_type(session, "k.0")
        self._cache = key_values(config.transformer, slots, config.transformer.context, dtype)
        inputs: dict[str, Array] = {
            "text": self.text_B,
            "codes": codes_BK,
            "length": self._length_B,
            "row": self._rotary.row_BT,
            **layer_arrays(self._cache),
        }
        if any(node.name == "delay" for node in session.get_inputs()):
            inputs["delay"] = self.delay_B
        outputs = self._heads | layer_arrays(self._cache, ".new")
        self._bound = Bound(session, inputs, outputs, {"longest": self._longest, **self._rotary.angles})

    def step(self, position_B: IntArray, active_B: BoolArray) -> None:
        """Read the tokens of the first slots, which are at `position_B`, and advance the active ones of them."""
        rows = len(position_B)
        self._length_B[:rows] = np.minimum(position_B, self._older)
        self._longest[:] = self._length_B[:rows].max() + 1
        self._rotary.turn(position_B[:, None])
        self._bound.run(rows)
        for slot in np.flatnonzero(active_B & (position_B >= self._older) & (self._older > 0)):
            column = position_B[slot] % self._older
            self._cache[:, :, slot, :, column] = self._cache[:, :, slot, :, self._older]

    def read(self, slot: int, position: int) -> Mapping[str, Array]:
        """Copy the keys and values of a slot whose next position is `position`."""
        return {"cache": self._cache[:, :, slot, :, : min(position, self._older)].copy()}

    def write(self, slot: int, saved: Mapping[str, Array]) -> None:
        """Put a copy of keys and values into a slot."""
        cache = saved["cache"]
        self._cache[:, :, slot, :, : cache.shape[3]] = cache


class DecoderStreams(TextStreams):
    """Whisper's decoder over B streams: each has a number of text tokens, the last of them, and two caches."""

    def __init__(self, config: LMConfig, session: onnxruntime.InferenceSession, slots: int, codes_BK: IntArray) -> None:
        super().__init__(config, slots, codes_BK)
        assert config.whisper is not None
        self._whisper = config.whisper
        self._count_B = np.full(slots, -1)
        self._held_B = np.full(slots, PAD_ID)
        self._read_B2 = np.zeros((slots, 2), np.int64)
        self._position_B = np.zeros(slots, np.int64)
        shape, prefix = config.transformer, config.whisper.prefix
        self._text = _Repeating(shape, slots, shape.context, first=prefix)
        self._audio = _Repeating(shape, slots, config.whisper.audio_columns, step=config.whisper.vectors)
        self._age_BC = np.zeros((slots, self._audio.columns), np.int64)
        inputs: dict[str, Array] = {
            "text": self._read_B2,
            "codes": codes_BK,
            "position": self._position_B,
            "age": self._age_BC,
        }
        outputs, shared = self._heads.copy(), {}
        for kind, caches in (("", self._text), ("cross.", self._audio)):
            inputs |= {f"{kind}length": caches.length_B, **layer_arrays(caches.cache, prefix=kind)}
            outputs |= layer_arrays(caches.cache, ".new", kind)
            if caches.step > 1:
                inputs[f"{kind}columns"] = caches.earlier_BTH3
                outputs |= layer_arrays(caches.cache, ".earlier", kind)
            shared[f"{kind}longest"] = np.full(1, caches.columns, np.int32)
        self._bound = Bound(session, inputs, outputs, shared)
        # Few columns: this run copies its caches.
        feeds = {name: array[:1] for name, array in inputs.items()} | {"age": self._age_BC[:1, : self._audio.step + 1]}
        for kind, caches in (("", self._text), ("cross.", self._audio)):
            columns = caches.step + 1
            feeds |= layer_arrays(caches.cache[:, :, :1, :, :columns], prefix=kind)
            feeds[f"{kind}longest"] = np.full(1, columns, np.int32)
        self._language_B = np.zeros(slots, np.int64)
        self._prefix_NL2HPd = np.asarray(session.run(["prefix"], feeds)[0])
        self._text.cache[:, :, :, :, :prefix] = self._prefix_NL2HPd[0][:, :, None]

    def set_language(self, slot: int, number: int) -> None:
        """Give a slot the prefix of a language by its number; see `LMConfig.language_number`."""
        if self._language_B[slot] != number:
            self._language_B[slot] = number
            self._text.cache[:, :, slot, :, : self._whisper.prefix] = self._prefix_NL2HPd[number]

    def step(self, position_B: IntArray, active_B: BoolArray) -> None:
        """Read the tokens of the first slots, and the frames number `position_B`, and advance the active ones."""
        rows = len(position_B)
        text_B = self.text_B[:rows]
        new_B = is_text(text_B)
        count_B = self._count_B[:rows] + new_B
        held_B = np.where(new_B, text_B, self._held_B[:rows])
        self._read_B2[:rows, 0] = held_B
        self._read_B2[:rows, 1] = np.where(new_B, self.config.text_initial_id + 1, text_B)
        self._position_B[:rows] = self._whisper.position(count_B)
        self._text.place(count_B, new_B, active_B)
        newest_B = (position_B + 1) * self._whisper.vectors - 1
        self._audio.place(newest_B, active_B, active_B)
        self._age_BC[:rows] = self._audio.ages(newest_B)
        self._bound.run(rows)
        self._count_B[:rows][active_B] = count_B[active_B]
        self._held_B[:rows][active_B] = held_B[active_B]

    def copy_text(self, source: int, target: int, position: int) -> None:
        """Copy the tokens of a slot and their keys and values. Those of the audio are the same."""
        self._count_B[target] = self._count_B[source]
        self._held_B[target] = self._held_B[source]
        self._text.write(target, self._text.read(source, int(self._count_B[source])))

    def read(self, slot: int, position: int) -> Mapping[str, Array]:
        """Copy the last text token of a slot, its number, and the keys and values, before frame `position`."""
        return {
            "language": self._language_B[slot].copy(),
            "count": self._count_B[slot].copy(),
            "held": self._held_B[slot].copy(),
            "text": self._text.read(slot, int(self._count_B[slot])),
            "audio": self._audio.read(slot, position * self._whisper.vectors - 1),
        }

    def write(self, slot: int, saved: Mapping[str, Array]) -> None:
        """Put a copy into a slot."""
        self.set_language(slot, int(saved["language"]))
        self._count_B[slot] = saved["count"]
        self._held_B[slot] = saved["held"]
        self._text.write(slot, saved["text"])
        self._audio.write(slot, saved["audio"])


class _Repeating:
    """Caches in which a step may repeat the position of the step before, and replaces its key.

    After `first` columns that do not change, a ring holds the positions before the newest, which is in the column after
    them: position p is in column min(p, context - 1). When that is full, the step that advances moves its key into the
    ring, over the oldest. A slot that does not advance writes into the last columns, which no other step sees.

    A step has `step` positions. Those before the newest go directly to the ring, by `earlier_BTH3`: the slot, head and
    column of each.
    """

    def __init__(self, config: TransformerConfig, slots: int, context: int, first: int = 0, step: int = 1) -> None:
        self.first, self.older, self.step, self.columns = first, context - 1, step, first + context + step
        self.cache = key_values(config, slots, self.columns, np.float32)
        self.length_B = np.zeros(slots, np.int32)
        self.earlier_BTH3 = np.zeros((slots, step - 1, config.num_heads, 3), np.int64)
        self.earlier_BTH3[..., 0] = np.arange(slots)[:, None, None]
        self.earlier_BTH3[..., 1] = np.arange(config.num_heads)

    def place(self, position_B: IntArray, new_B: BoolArray, active_B: BoolArray) -> None:
        """Set the columns of the first slots' keys, the newest of which is at `position_B`.

        `new_B`: whether these are not the positions of the step before.
        """
        rows, last_B = len(position_B), position_B - self.step
        moved = np.flatnonzero(new_B & active_B & (last_B >= self.older) & (self.older > 0))
        into = self.first + last_B[moved] % max(self.older, 1)
        self.cache[:, :, moved, :, into] = self.cache[:, :, moved, :, self.first + self.older]
        column_B = self.first + np.minimum(position_B, self.older)
        self.length_B[:rows] = np.where(active_B, column_B, self.columns - 1)
        if self.step > 1:
            back_T = np.arange(1 - self.step, 0)
            column_BT = self.first + (position_B[:, None] + back_T) % self.older
            self.earlier_BTH3[:rows, ..., 2] = np.where(active_B[:, None], column_BT, self.columns - 1 + back_T)[
                ..., None
            ]

    def ages(self, position_B: IntArray) -> IntArray:
        """How many steps older than `position_B` the key in each column is, `[B, C]`; 0 where there is none."""
        age_BC = np.zeros((len(position_B), self.columns), np.int64)
        if self.older:
            key_BC = ring_keys(position_B[:, None] - 1, np.arange(self.older))
            age_BC[:, : self.older] = np.where(key_BC < 0, 0, (position_B // self.step)[:, None] - key_BC // self.step)
        return age_BC

    def read(self, slot: int, position: int) -> Array:
        """Copy the keys and values of a slot whose newest position is `position`."""
        end = self.first + min(position, self.older) + 1
        copied: Array = self.cache[:, :, slot, :, self.first : end].copy()
        return copied

    def write(self, slot: int, saved: Array) -> None:
        self.cache[:, :, slot, :, self.first : self.first + saved.shape[3]] = saved
