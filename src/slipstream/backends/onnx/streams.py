"""The state of `slots` streams in fixed buffers, and one step of the codec and of the LM over them.

Shapes: B slots, S samples, T positions of the codec's Transformer in a frame, K codebooks, L layers, H heads, d head
width, C columns, V text vocabulary. Keys and values of all layers are in one array `[L, 2, B, H, C, d]`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnxruntime

from slipstream.arrays import BoolArray, FloatArray, IntArray
from slipstream.backends.onnx.graph import Array
from slipstream.backends.onnx.inference import Bound, input_type
from slipstream.backends.onnx.transformer import padded_head_dim
from slipstream.model.config import PAD_ID, CodecConfig, LMConfig, TransformerConfig, WhisperConfig
from slipstream.model.numerics import (
    delayed_sees,
    is_text,
    ring_capacity,
    ring_keys,
    rotations,
    sees,
    whisper_positions,
)


class CodecStreams:
    """The codec over B streams. `first_B`: the number of each stream's first frame."""

    def __init__(
        self, config: CodecConfig, session: onnxruntime.InferenceSession, slots: int, num_codebooks: int
    ) -> None:
        self.config = config
        self.pcm_BS = np.zeros((slots, config.frame_samples), np.float32)
        self.codes_BK = np.zeros((slots, num_codebooks), np.int64)
        self.first_B = np.zeros(slots, np.int64)
        self._first_B = np.zeros(slots, np.bool_)
        self._places: _CausalPlaces | _WhisperPlaces
        if config.whisper:
            self._places = _WhisperPlaces(config.whisper, slots, config.stride)
        else:
            self._places = _CausalPlaces(config.transformer, slots, config.stride)
        self.columns = self._places.columns
        self._tails = _tails(session, slots)
        self._new_tails = {f"{name}.new": np.zeros_like(tail) for name, tail in self._tails.items()}
        self._ring = self._places.empty_ring()
        inputs: dict[str, Array] = {
            "pcm": self.pcm_BS,
            "first": self._first_B,
            **self._places.inputs,
            **self._tails,
            **_layers(self._ring),
        }
        outputs = {"codes": self.codes_BK, **self._new_tails, **_layers(self._ring, ".new")}
        self._bound = Bound(session, inputs, outputs, self._places.shared)

    def step(self, frames_B: IntArray) -> None:
        """Encode the next frame of the first slots, which have processed `frames_B` frames."""
        self._first_B[: len(frames_B)] = frames_B == 0
        first_B, stride = self.first_B[: len(frames_B)] * self.config.stride, self.config.stride
        self._places.find((first_B + frames_B * stride)[:, None] + np.arange(stride), first_B)
        self._bound.run(len(frames_B))

    def commit(self, active_B: BoolArray) -> None:
        """Advance the active slots, which were all in the last step."""
        for old, new in zip(self._tails.values(), self._new_tails.values(), strict=True):
            old[active_B] = new[active_B]

    def reset(self, slot: int) -> None:
        for tail in self._tails.values():
            tail[slot] = 0

    def read(self, slot: int, frames: int) -> dict[str, Array]:
        """Copy a slot that has processed `frames` frames."""
        filled = self.columns if self.first_B[slot] else min(frames * self.config.stride, self.columns)
        saved = {name: tail[slot].copy() for name, tail in self._tails.items()}
        return saved | {"ring": self._ring[:, :, slot, :, :filled].copy()}

    def write(self, slot: int, saved: Mapping[str, Array]) -> None:
        for name, tail in self._tails.items():
            tail[slot] = saved[name]
        ring = saved["ring"]
        self._ring[:, :, slot, :, : ring.shape[3]] = ring


class _Places:
    """The columns of a frame's T positions in rings of C columns, and what their queries see.

    A stream that continues a longer one has its positions, and so its columns: sums in another order round differently,
    and 8-bit weights and codebooks would make that a difference of tokens.
    `inputs`: a graph's inputs with a row for each slot; `shared`: those without.
    """

    def __init__(self, slots: int, positions: int, heads: int, columns: int, masks: int) -> None:
        self.columns = columns
        self.mask_BLTC = np.zeros((slots, masks, positions, columns), np.float32)
        self._place_BTH3 = np.zeros((slots, positions, heads, 3), np.int64)
        self._place_BTH3[..., 0] = np.arange(slots)[:, None, None]
        self._place_BTH3[..., 1] = np.arange(heads)
        self.inputs: dict[str, Array] = {"mask": self.mask_BLTC, "columns": self._place_BTH3}
        self.shared: dict[str, Array] = {}

    def place(self, position_BT: IntArray) -> IntArray:
        """Set the columns of the new keys, and return the newest position in each column `[B, C]`: see `ring_keys`."""
        self._place_BTH3[: len(position_BT), ..., 2] = (position_BT % self.columns)[:, :, None]
        return ring_keys(position_BT[:, -1:], np.arange(self.columns))


class _CausalPlaces(_Places):
    """Positions of a causal Transformer with rotary embedding."""

    def __init__(self, config: TransformerConfig, slots: int, positions: int) -> None:
        super().__init__(slots, positions, config.num_heads, ring_capacity(config.context, positions), masks=1)
        self.config = config
        self._rotary = _Rotary(config, slots, positions)
        self.inputs["row"] = self._rotary.row_BT
        self.shared = self._rotary.angles

    def empty_ring(self) -> Array:
        return _key_values(self.config, len(self.mask_BLTC), self.columns, np.float32)

    def find(self, position_BT: IntArray, first_B: IntArray) -> None:
        """Set the inputs of a frame. `first_B`: the first position of each stream."""
        key_B1C = self.place(position_BT)[:, None]
        seen = sees(position_BT[:, :, None], key_B1C, self.config.context, first=first_B[:, None, None])
        self.mask_BLTC[: len(position_BT), 0] = np.where(seen, np.float32(0), np.float32(-np.inf))
        self._rotary.turn(position_BT)


class _WhisperPlaces(_Places):
    """Positions in a Whisper encoder: queries lag behind keys, and a layer's keys behind those of the one below."""

    def __init__(self, config: WhisperConfig, slots: int, positions: int) -> None:
        columns = ring_capacity(config.context, positions, config.lookahead)
        super().__init__(slots, positions, config.num_heads, columns, masks=config.num_layers)
        self.config = config
        self._table = whisper_positions(config.dim)
        self._sines_BTD = np.zeros((slots, positions, config.dim), np.float32)
        self._live_BT1 = np.zeros((slots, positions, 1), np.float32)
        self.inputs |= {"sines": self._sines_BTD, "live": self._live_BT1}

    def empty_ring(self) -> Array:
        config = self.config
        shape = (config.num_layers, 2, len(self.mask_BLTC), config.num_heads, self.columns, config.head_dim)
        return np.zeros(shape, np.float32)

    def find(self, position_BT: IntArray, first_B: IntArray) -> None:
        """Set the inputs of a frame. `first_B`: the first position of each stream."""
        config, rows = self.config, len(position_BT)
        key_B11C = self.place(position_BT)[:, None, None]
        first_BL11 = (first_B[:, None] + np.arange(config.num_layers) * config.lookahead)[..., None, None]
        seen = delayed_sees(position_BT[:, None, :, None], key_B11C, config, first_BL11)
        self.mask_BLTC[:rows] = np.where(seen, np.float32(0), np.float32(-np.inf))
        self._sines_BTD[:rows] = self._table[position_BT % len(self._table)]
        self._live_BT1[:rows, :, 0] = position_BT - first_B[:, None] >= config.delay


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
        self._rotary = _Rotary(config.transformer, slots, 1)
        self._length_B = np.zeros(slots, np.int32)
        self._longest = np.zeros(1, np.int32)
        dtype = input_type(session, "k.0")
        self._cache = _key_values(config.transformer, slots, config.transformer.context, dtype)
        inputs: dict[str, Array] = {
            "text": self.text_B,
            "codes": codes_BK,
            "length": self._length_B,
            "row": self._rotary.row_BT,
            **_layers(self._cache),
        }
        if any(node.name == "delay" for node in session.get_inputs()):
            inputs["delay"] = self.delay_B
        outputs = self._heads | _layers(self._cache, ".new")
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
            inputs |= {f"{kind}length": caches.length_B, **_layers(caches.cache, prefix=kind)}
            outputs |= _layers(caches.cache, ".new", kind)
            if caches.step > 1:
                inputs[f"{kind}columns"] = caches.earlier_BTH3
                outputs |= _layers(caches.cache, ".earlier", kind)
            shared[f"{kind}longest"] = np.full(1, caches.columns, np.int32)
        self._bound = Bound(session, inputs, outputs, shared)
        # Few columns: this run copies its caches.
        feeds = {name: array[:1] for name, array in inputs.items()} | {"age": self._age_BC[:1, : self._audio.step + 1]}
        for kind, caches in (("", self._text), ("cross.", self._audio)):
            columns = caches.step + 1
            feeds |= _layers(caches.cache[:, :, :1, :, :columns], prefix=kind)
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
        self.cache = _key_values(config, slots, self.columns, np.float32)
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


class _Rotary:
    """The inputs of the rotary angles: a table with a row for each position of each slot, and the rows of each slot."""

    def __init__(self, config: TransformerConfig, slots: int, steps: int) -> None:
        self.config = config
        self.row_BT = np.arange(slots * steps).reshape(slots, steps)
        self.pairs = padded_head_dim(config) // 2  # those of the padding are zeros
        cos, sin = self._rotations(self.row_BT)
        self.angles = {"cos": cos, "sin": sin}

    def turn(self, position_BT: IntArray) -> None:
        rows = position_BT.size
        self.angles["cos"][:rows], self.angles["sin"][:rows] = self._rotations(position_BT)

    def _rotations(self, position_BT: IntArray) -> tuple[FloatArray, FloatArray]:
        return rotations(position_BT.reshape(-1), self.config.head_dim, self.config.max_period, self.pairs)


def _tails(session: onnxruntime.InferenceSession, slots: int) -> dict[str, Array]:
    shapes = {node.name: node.shape for node in session.get_inputs() if node.name.startswith("tail.")}
    return {name: np.zeros((slots, *shape[1:]), np.float32) for name, shape in shapes.items()}


def _key_values(config: TransformerConfig, slots: int, columns: int, dtype: npt.DTypeLike) -> Array:
    shape = (config.num_layers, 2, slots, config.num_heads, columns, padded_head_dim(config))
    return np.zeros(shape, dtype)


def _layers(key_values: Array, suffix: str = "", prefix: str = "") -> dict[str, Array]:
    """The names in the graph of each layer's keys and values."""
    return {
        f"{prefix}{name}.{layer}{suffix}": part
        for layer, pair in enumerate(key_values)
        for name, part in zip(("k", "v"), pair, strict=True)
    }
