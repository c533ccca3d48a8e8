"""Whisper's text decoder as the LM, one step of a stream at a time; see `nn.decoder`.

Shapes: B slots, T positions of one step (1), D width, H heads, C ring columns, V vectors per frame, N frames that a
step sees, P columns of the prefix.
"""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from slipstream.arrays import IntArray
from slipstream.backends.mlx.state import Ring
from slipstream.backends.mlx.whisper import WhisperAttention, WhisperFeedForward
from slipstream.model.config import PAD_ID, LMConfig
from slipstream.model.numerics import LAYER_NORM_EPS, is_text, ring_capacity, ring_keys, sees


class DecoderState(TypedDict):
    """The last text `[B]` of each stream and its position `[B]`, and the rings of each layer.

    The text positions depend on the tokens that were picked, so they are on the device. The first columns of the text
    rings are the prefix in the language of the stream, which nothing overwrites.
    """

    position: mx.array
    held: mx.array
    text: list[Ring]
    audio: list[Ring]


class FramePositions(NamedTuple):
    """What the frame of one step needs in each slot, computed on the host.

    `columns_BV`: the audio rings' columns. `mask` `[B, 1, T, C]`: the columns that the step sees. `ages_BTC`: by how
    many frames each is older.
    """

    columns_BV: mx.array
    mask: mx.array
    ages_BTC: mx.array


class WhisperDecoderLayer(nn.Module):
    """Attention to the text, attention to the audio, feed-forward, each on a normalised input and added back."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        assert config.whisper is not None
        transformer = config.transformer
        self.norm1 = nn.LayerNorm(transformer.dim, LAYER_NORM_EPS)
        self.attn = WhisperAttention(transformer)
        self.norm2 = nn.LayerNorm(transformer.dim, LAYER_NORM_EPS)
        self.cross = WhisperAttention(transformer)
        self.age = mx.zeros((transformer.num_heads, config.whisper.audio_context))
        self.prefix = mx.zeros((2, transformer.num_heads, config.whisper.prefix, transformer.head_dim))
        if languages := len(config.languages):
            self.languages = mx.zeros((languages, *self.prefix.shape))
        self.norm3 = nn.LayerNorm(transformer.dim, LAYER_NORM_EPS)
        self.ffn = WhisperFeedForward(transformer)

    def __call__(
        self,
        x_BTD: mx.array,
        audio_BVD: mx.array,
        rings: tuple[Ring, Ring],
        text_columns_BT: mx.array,
        text_mask: mx.array,
        at: FramePositions,
    ) -> tuple[mx.array, tuple[Ring, Ring]]:
        x = self.norm1(x_BTD)
        text = rings[0].write(text_columns_BT, *self.attn.keys_values(x))
        x_BTD = x_BTD + self.attn(x, text, text_mask)
        audio = rings[1].write(at.columns_BV, *self.cross.keys_values(audio_BVD))
        # [H, B, T, C] -> [B, H, T, C]
        mask = mx.where(at.mask, self.age[:, at.ages_BTC].swapaxes(0, 1), -mx.inf).astype(x_BTD.dtype)
        x_BTD = x_BTD + self.cross(self.norm2(x_BTD), audio, mask)
        return x_BTD + self.ffn(self.norm3(x_BTD)), (text, audio)


class WhisperDecoder(nn.Module):
    """A stack of layers that advances by one text position at most, and by one frame.

    A stream that is not to advance must read text: the step then writes the next column, which nothing sees yet.
    """

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        assert config.whisper is not None
        self.config, self.whisper = config.transformer, config.whisper
        # A step writes the column of the last text position, or the next one, which a spare column keeps free.
        self.text_capacity = ring_capacity(config.transformer.context, 2)
        self.audio_capacity = ring_capacity(config.whisper.audio_columns, 1)
        self.positions = mx.zeros((config.whisper.num_positions, config.transformer.dim))
        dim, vectors = config.transformer.dim, config.whisper.vectors
        if vectors > 1:
            self.spread = nn.Linear(dim, vectors * dim)
        self.layers = [WhisperDecoderLayer(config) for _ in range(config.transformer.num_layers)]

    def init_state(self, batch: int, dtype: mx.Dtype, language: int = 0) -> DecoderState:
        shape = batch, self.config.num_heads

        def text(layer: WhisperDecoderLayer) -> Ring:
            ring = Ring.empty(*shape, self.text_capacity, self.config.head_dim, dtype)
            prefix = layer.prefix + layer.languages[language - 1] if language else layer.prefix
            prefix_2BHPD = mx.repeat(prefix[:, None].astype(dtype), batch, axis=1)
            return Ring(*(mx.concatenate([*parts], axis=2) for parts in zip(prefix_2BHPD, ring, strict=True)))

        return {
            "position": mx.full((batch,), -1, mx.int64),
            "held": mx.full((batch,), PAD_ID, mx.int32),
            "text": [text(layer) for layer in self.layers],
            "audio": [Ring.empty(*shape, self.audio_capacity, self.config.head_dim, dtype) for _ in self.layers],
        }

    def locate(self, first_B: IntArray) -> FramePositions:
        """The positions of the next step, for slots at frame number `first_B`."""
        frame_BT, vectors = first_B[:, None], self.whisper.vectors
        vector_BV = frame_BT * vectors + np.arange(vectors)
        key_BC = ring_keys(vector_BV[:, -1:], np.arange(self.audio_capacity)) // vectors
        age_BTC = (frame_BT - key_BC)[:, None]
        seen_BTC = sees(frame_BT[..., None], key_BC[:, None], self.whisper.audio_context)
        return FramePositions(
            columns_BV=mx.array((vector_BV % self.audio_capacity).astype(np.int32)),
            mask=mx.array(seen_BTC[:, None]),
            ages_BTC=mx.array(age_BTC.astype(np.int32)),
        )

    def __call__(
        self, text_B: mx.array, embedding: nn.Module, audio_BTD: mx.array, state: DecoderState, at: FramePositions
    ) -> tuple[mx.array, DecoderState]:
        """The text token that the step reads, and the embedded audio of its frame, to the output `[B, T, D]`."""
        new_B = is_text(text_B)
        held_B = mx.where(new_B, text_B, state["held"])
        position_B = state["position"] + new_B
        key_BC = ring_keys(position_B[:, None], mx.arange(self.text_capacity))
        seen_BC = sees(position_B[:, None], key_BC, self.config.context)
        prefix_BP = mx.ones((len(text_B), self.whisper.prefix), mx.bool_)
        mask = mx.concatenate([prefix_BP, seen_BC], axis=1)[:, None, None]
        columns_BT = (self.whisper.prefix + position_B % self.text_capacity)[:, None]
        # A step without a new token adds the vector of PAD or of the start of a word to that of the last token.
        x_BD = embedding(held_B) + self.positions[self.whisper.position(position_B)]
        x_BD = x_BD + mx.where(new_B[:, None], 0, embedding(text_B))
        vectors = self.whisper.vectors
        audio_BVD = audio_BTD if vectors == 1 else self.spread(audio_BTD).reshape(len(text_B), vectors, -1)
        x_BTD, rings = x_BD[:, None], []
        for layer, *old in zip(self.layers, state["text"], state["audio"], strict=True):
            x_BTD, new = layer(x_BTD, audio_BVD, (old[0], old[1]), columns_BT, mask, at)
            rings.append(new)
        text, audio = (list(part) for part in zip(*rings, strict=True))
        return x_BTD, {"position": position_B, "held": held_B, "text": text, "audio": audio}
