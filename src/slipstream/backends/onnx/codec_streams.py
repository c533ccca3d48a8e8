"""The state of the codec's `slots` streams in fixed buffers, its steps, and frames that are encoded ahead of them.

Shapes: B slots, S samples, F frames, T positions of the codec's Transformer, K codebooks, L layers, H heads, d head
width, C columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime

from slipstream.arrays import BoolArray, FloatArray, IntArray
from slipstream.backends.onnx.buffers import Rotary, key_values, layer_arrays
from slipstream.backends.onnx.graph import Array
from slipstream.backends.onnx.inference import Bound, bind
from slipstream.errors import CheckpointError
from slipstream.model.config import CodecConfig, TransformerConfig, WhisperConfig
from slipstream.model.numerics import delayed_sees, ring_capacity, ring_keys, sees, whisper_positions

MAX_AHEAD = 8
"""The most frames that a Whisper encoder encodes in one run. A frame then takes less than half of the time, because the
weights are read once for all of them. Each more makes every stream's rings larger, by `stride` columns."""


class CodecStreams:
    """The codec over B streams. `first_B`: the number of each stream's first frame.

    A stream may be some frames ahead of its LM (`encode`): its steps then use the codes of these frames.
    """

    def __init__(
        self, config: CodecConfig, session: onnxruntime.InferenceSession, slots: int, num_codebooks: int
    ) -> None:
        self.config = config
        self.max_ahead = MAX_AHEAD if config.whisper else 0
        self.pcm_BS = np.zeros((slots, config.frame_samples), np.float32)
        self.codes_BK = np.zeros((slots, num_codebooks), np.int64)
        self.first_B = np.zeros(slots, np.int64)
        self.ahead_B = np.zeros(slots, np.int64)
        """Frames of each stream that are encoded and not used yet."""
        self._ahead_BFK = np.zeros((slots, self.max_ahead, num_codebooks), np.int64)  # the last `ahead_B` are valid
        self._session = session
        self._blocks: dict[int, _Block] = {}
        self._begins_B = np.zeros(slots, np.bool_)
        self._places: _CausalPlaces | _WhisperPlaces
        if config.whisper:
            _check_lookahead(session, config.whisper)
            self._places = _WhisperPlaces(config.whisper, slots, config.stride, config.stride * MAX_AHEAD)
        else:
            self._places = _CausalPlaces(config.transformer, slots, config.stride)
        self.columns = self._places.columns
        self._tails = _tails(session, slots)
        self._new_tails = {f"{name}.new": np.zeros_like(tail) for name, tail in self._tails.items()}
        self._ring = self._places.empty_ring()
        inputs: dict[str, Array] = {
            "pcm": self.pcm_BS,
            "first": self._begins_B,
            **self._places.inputs,
            **self._tails,
            **layer_arrays(self._ring),
        }
        outputs = {"codes": self.codes_BK, **self._new_tails, **layer_arrays(self._ring, ".new")}
        self._bound = Bound(session, inputs, outputs, self._places.shared)

    def step(self, frames_B: IntArray, active_B: BoolArray) -> None:
        """Put the codes of the next frame of the first slots, which have used `frames_B` frames, into `codes_BK`."""
        rows = len(frames_B)
        ahead_B = self.ahead_B[:rows]
        if (active_B & (ahead_B == 0)).any():
            encoded_B = frames_B + ahead_B
            self._begins_B[:rows] = encoded_B == 0
            stride = self.config.stride
            first_B = self.first_B[:rows] * stride
            self._places.find((first_B + encoded_B * stride)[:, None] + np.arange(stride), first_B)
            self._bound.run(rows)
        for slot in np.flatnonzero(ahead_B):
            self.codes_BK[slot] = self._ahead_BFK[slot, -ahead_B[slot]]

    def commit(self, active_B: BoolArray) -> None:
        """Advance the active slots, which were all in the last step."""
        encoded_B = active_B & (self.ahead_B == 0)
        for old, new in zip(self._tails.values(), self._new_tails.values(), strict=True):
            old[encoded_B] = new[encoded_B]
        self.ahead_B[active_B & ~encoded_B] -= 1

    def encode(self, slots: Sequence[int], frames: int, pcm_FS: FloatArray) -> None:
        """Encode the next F frames of `slots` ahead, which have used `frames` frames, all with the same audio.

        The first slot is computed, and the others get a copy of what changes in it.
        """
        slot, *others = slots
        F, stride = len(pcm_FS), self.config.stride
        if F not in self._blocks:
            self._blocks[F] = _Block(self.config, F, self.codes_BK.shape[1])
        block = self._blocks[F]
        block.pcm_1S[:] = pcm_FS.reshape(1, -1)
        first_1 = self.first_B[[slot]] * stride
        position_1T = first_1 + frames * stride + np.arange(F * stride)[None]
        block.places.find(position_1T, first_1)
        block.inputs["first"][:] = frames == 0
        one = slice(slot, slot + 1)
        inputs = {**block.inputs, **{name: tail[one] for name, tail in self._tails.items()}}
        rings = layer_arrays(self._ring[:, :, one])
        outputs = {"codes": block.codes_FK, **{name: tail[one] for name, tail in self._new_tails.items()}}
        outputs |= {f"{name}.new": ring for name, ring in rings.items()}
        self._session.run_with_iobinding(bind(self._session, inputs | rings, outputs))
        columns = position_1T[0] % self.columns
        for other in others:
            self._ring[:, :, other][:, :, :, columns] = self._ring[:, :, slot][:, :, :, columns]
        for old, new in zip(self._tails.values(), self._new_tails.values(), strict=True):
            old[list(slots)] = new[slot]
        self._ahead_BFK[list(slots), -F:] = block.codes_FK
        self.ahead_B[list(slots)] = F

    def reset(self, slot: int) -> None:
        for tail in self._tails.values():
            tail[slot] = 0

    def read(self, slot: int, frames: int) -> dict[str, Array]:
        """Copy a slot that has used `frames` frames."""
        ahead = int(self.ahead_B[slot])
        encoded = (frames + ahead) * self.config.stride
        filled = self.columns if self.first_B[slot] else min(encoded, self.columns)
        saved = {name: tail[slot].copy() for name, tail in self._tails.items()}
        codes = self._ahead_BFK[slot, self.max_ahead - ahead :].copy()
        return saved | {"ring": self._ring[:, :, slot, :, :filled].copy(), "ahead": codes}

    def write(self, slot: int, saved: Mapping[str, Array]) -> None:
        for name, tail in self._tails.items():
            tail[slot] = saved[name]
        ring, codes = saved["ring"], saved["ahead"]
        self._ring[:, :, slot, :, : ring.shape[3]] = ring
        self.ahead_B[slot] = len(codes)
        self._ahead_BFK[slot, self.max_ahead - len(codes) :] = codes


class _Block:
    """The inputs and codes of F frames of one stream."""

    def __init__(self, config: CodecConfig, frames: int, num_codebooks: int) -> None:
        assert config.whisper is not None
        positions = frames * config.stride
        self.pcm_1S = np.zeros((1, frames * config.frame_samples), np.float32)
        self.codes_FK = np.zeros((frames, num_codebooks), np.int64)
        self.places = _WhisperPlaces(config.whisper, 1, positions, config.stride * MAX_AHEAD)
        self.inputs: dict[str, Array] = {
            "pcm": self.pcm_1S,
            "first": np.zeros(1, np.bool_),
            **self.places.inputs,
        }


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
        self._rotary = Rotary(config, slots, positions)
        self.inputs["row"] = self._rotary.row_BT
        self.shared = self._rotary.angles

    def empty_ring(self) -> Array:
        return key_values(self.config, len(self.mask_BLTC), self.columns, np.float32)

    def find(self, position_BT: IntArray, first_B: IntArray) -> None:
        """Set the inputs of a frame. `first_B`: the first position of each stream."""
        key_B1C = self.place(position_BT)[:, None]
        seen = sees(position_BT[:, :, None], key_B1C, self.config.context, first=first_B[:, None, None])
        self.mask_BLTC[: len(position_BT), 0] = np.where(seen, np.float32(0), np.float32(-np.inf))
        self._rotary.turn(position_BT)


class _WhisperPlaces(_Places):
    """Positions in a Whisper encoder: queries lag behind keys, and a layer's keys behind those of the one below.

    `most_positions`: the most positions of a run over the same rings.
    """

    def __init__(self, config: WhisperConfig, slots: int, positions: int, most_positions: int) -> None:
        columns = ring_capacity(config.context, most_positions, config.lookahead)
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


def _check_lookahead(session: onnxruntime.InferenceSession, config: WhisperConfig) -> None:
    """Raise `CheckpointError` for a graph of another lookahead, whose tails have another length."""
    found = next((node.shape[1] for node in session.get_inputs() if node.name == "tail.delayed.0"), 0)
    if found != config.lookahead:
        raise CheckpointError(
            f"the codec's graph has a lookahead of {found} positions, the configuration one of {config.lookahead}: "
            "convert the checkpoint again"
        )


def _tails(session: onnxruntime.InferenceSession, slots: int) -> dict[str, Array]:
    shapes = {node.name: node.shape for node in session.get_inputs() if node.name.startswith("tail.")}
    return {name: np.zeros((slots, *shape[1:]), np.float32) for name, shape in shapes.items()}
