"""The state of `slots` streams in fixed buffers, and one step of the codec and of the LM over them.

Shapes: B slots, S samples, T positions of the codec's Transformer in a frame, K codebooks, L layers, H heads, d head
width, C columns, V text vocabulary. Keys and values of all layers lie in one array `[L, 2, B, H, C, d]`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnxruntime

from slipstream.config import CodecConfig, LMConfig, TransformerConfig
from slipstream.onnx_model.graph import Array
from slipstream.onnx_model.session import Bound, input_type
from slipstream.onnx_model.transformer import padded_head_dim, rotations
from slipstream.types import BoolArray, IntArray


class CodecStreams:
    """The codec over B streams."""

    def __init__(
        self, config: CodecConfig, session: onnxruntime.InferenceSession, slots: int, num_codebooks: int
    ) -> None:
        T, H = config.stride, config.transformer.num_heads
        self.config = config
        # A frame's first query still needs its `context` keys when the frame's last key is written.
        self.columns = config.transformer.context + T - 1
        self.pcm_BS = np.zeros((slots, config.frame_samples), np.float32)
        self.codes_BK = np.zeros((slots, num_codebooks), np.int64)
        self._first_B = np.zeros(slots, np.bool_)
        self._rotary = _Rotary(config.transformer, slots, T)
        self._mask_BTC = np.zeros((slots, 1, T, self.columns), np.float32)
        self._place_BTH3 = np.zeros((slots, T, H, 3), np.int64)
        self._place_BTH3[..., 0] = np.arange(slots)[:, None, None]
        self._place_BTH3[..., 1] = np.arange(H)
        self._tails = _tails(session, slots)
        self._new_tails = {f"{name}.new": np.zeros_like(tail) for name, tail in self._tails.items()}
        self._ring = _key_values(config.transformer, slots, self.columns, np.float32)
        inputs: dict[str, Array] = {
            "pcm": self.pcm_BS,
            "first": self._first_B,
            "mask": self._mask_BTC,
            "columns": self._place_BTH3,
            "row": self._rotary.row_BT,
            **self._tails,
            **_layers(self._ring),
        }
        outputs = {"codes": self.codes_BK, **self._new_tails, **_layers(self._ring, ".new")}
        self._bound = Bound(session, inputs, outputs, self._rotary.angles)

    def step(self, frames_B: IntArray) -> None:
        """Encode a frame of each stream that has heard `frames_B` frames: the first slots, as many as there are."""
        T, C, rows = self.config.stride, self.columns, len(frames_B)
        position_BT = frames_B[:, None] * T + np.arange(T)
        # The newest position that lies in each column once this frame is written; negative where none does yet.
        last_B1 = position_BT[:, -1:]
        held_BC = last_B1 - (last_B1 - np.arange(C)) % C
        distance_BTC = position_BT[:, :, None] - held_BC[:, None]
        seen = (distance_BTC >= 0) & (distance_BTC < self.config.transformer.context) & (held_BC[:, None] >= 0)
        self._mask_BTC[:rows, 0] = np.where(seen, np.float32(0), np.float32(-np.inf))
        self._place_BTH3[:rows, ..., 2] = (position_BT % C)[:, :, None]
        self._first_B[:rows] = frames_B == 0
        self._rotary.turn(position_BT)
        self._bound.run(rows)

    def commit(self, active_B: BoolArray) -> None:
        """Let the active slots, all of them in the last step, advance."""
        for old, new in zip(self._tails.values(), self._new_tails.values(), strict=True):
            old[active_B] = new[active_B]

    def reset(self, slot: int) -> None:
        for tail in self._tails.values():
            tail[slot] = 0

    def read(self, slot: int, frames: int) -> dict[str, Array]:
        """Copy a slot that has heard `frames` frames."""
        filled = min(frames * self.config.stride, self.columns)
        saved = {name: tail[slot].copy() for name, tail in self._tails.items()}
        return saved | {"ring": self._ring[:, :, slot, :, :filled].copy()}

    def write(self, slot: int, saved: Mapping[str, Array]) -> None:
        for name, tail in self._tails.items():
            tail[slot] = saved[name]
        ring = saved["ring"]
        self._ring[:, :, slot, :, : ring.shape[3]] = ring


class LMStreams:
    """The LM over B streams, which reads `codes_BK` where the codec writes them.

    The last column of a cache is where a step writes its own key once the others are full. They are a ring of the
    positions before it: `commit` moves the newest there, over the oldest.
    """

    def __init__(self, config: LMConfig, session: onnxruntime.InferenceSession, slots: int, codes_BK: IntArray) -> None:
        self.config = config
        self.text_B = np.zeros(slots, np.int64)
        self.codes_BK = codes_BK
        self.logits_BV = np.zeros((slots, config.text_vocab), np.float32)
        self.pause_BH = np.zeros((slots, config.pause_heads), np.float32)
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
        outputs: dict[str, Array] = {"logits": self.logits_BV, **_layers(self._cache, ".new")}
        if config.pause_heads:
            outputs["pause"] = self.pause_BH
        self._bound = Bound(session, inputs, outputs, {"longest": self._longest, **self._rotary.angles})

    def step(self, position_B: IntArray) -> None:
        """Read the tokens of each stream at its position: the first slots, as many as there are positions."""
        rows = len(position_B)
        self._length_B[:rows] = np.minimum(position_B, self._older)
        self._longest[:] = self._length_B[:rows].max() + 1
        self._rotary.turn(position_B[:, None])
        self._bound.run(rows)

    def commit(self, active_B: BoolArray, position_B: IntArray) -> None:
        """Let the active slots, all of them in the last step, advance from `position_B`."""
        for slot in np.flatnonzero(active_B & (position_B >= self._older) & (self._older > 0)):
            column = position_B[slot] % self._older
            self._cache[:, :, slot, :, column] = self._cache[:, :, slot, :, self._older]

    def read(self, slot: int, position: int) -> Array:
        """Copy the keys and values of a slot whose next position is `position`."""
        saved: Array = self._cache[:, :, slot, :, : min(position, self._older)].copy()
        return saved

    def write(self, slot: int, saved: Array) -> None:
        self._cache[:, :, slot, :, : saved.shape[3]] = saved


class _Rotary:
    """The rotary angles' inputs: a table with a row for each position of each slot, and which rows are whose."""

    def __init__(self, config: TransformerConfig, slots: int, steps: int) -> None:
        self.config = config
        self.row_BT = np.arange(slots * steps).reshape(slots, steps)
        cos, sin = rotations(self.row_BT.reshape(-1), config)
        self.angles = {"cos": cos, "sin": sin}

    def turn(self, position_BT: IntArray) -> None:
        rows = position_BT.size
        self.angles["cos"][:rows], self.angles["sin"][:rows] = rotations(position_BT.reshape(-1), self.config)


def _tails(session: onnxruntime.InferenceSession, slots: int) -> dict[str, Array]:
    shapes = {node.name: node.shape for node in session.get_inputs() if node.name.startswith("tail.")}
    return {name: np.zeros((slots, *shape[1:]), np.float32) for name, shape in shapes.items()}


def _key_values(config: TransformerConfig, slots: int, columns: int, dtype: npt.DTypeLike) -> Array:
    shape = (config.num_layers, 2, slots, config.num_heads, columns, padded_head_dim(config))
    return np.zeros(shape, dtype)


def _layers(key_values: Array, suffix: str = "") -> dict[str, Array]:
    """The names in the graph of each layer's keys and values."""
    return {
        f"{name}.{layer}{suffix}": part
        for layer, pair in enumerate(key_values)
        for name, part in zip(("k", "v"), pair, strict=True)
    }
