"""Whisper's text decoder as the LM of a stream.

A step has one text position and one audio frame. Each layer attends to a learnt prefix and the tokens so far, then to
the vectors of the last frames, by content and by the age of the frame. A step without a new token repeats the last one:
it has the same text position, and its keys and values replace those of the step before. So the decoder reads text as
Whisper's does, however long the pauses are.

Shapes: B slots, T steps, D width, H heads, C ring columns, V vectors per frame, N frames that a step sees.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slipstream.model.config import PAD_ID, LMConfig
from slipstream.model.numerics import LAYER_NORM_EPS, is_text, ring_capacity, ring_keys, sees
from slipstream.nn.layers import attend, unpack
from slipstream.nn.ring import LayerRing, Ring, RingFormat
from slipstream.nn.state import State
from slipstream.nn.whisper import WhisperAttention, WhisperFeedForward


class _Places(NamedTuple):
    """Where the steps are: columns that they write, and what each query may see (`[B, 1, T, C]`, added to scores).

    `audio_mask` and `ages_BTC` have an entry for every `keys_each` keys of the audio.
    """

    text_columns_BT: Tensor
    text_mask: Tensor
    audio_columns_BT: Tensor
    audio_mask: Tensor
    ages_BTC: Tensor
    keys_each: int


class WhisperDecoderLayer(nn.Module):
    """Attention to the text, attention to the audio, feed-forward, each on a normalised input and added back."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        assert config.whisper is not None
        transformer = config.transformer
        self.norm1 = nn.LayerNorm(transformer.dim, eps=LAYER_NORM_EPS)
        self.attn = WhisperAttention(transformer)
        self.norm2 = nn.LayerNorm(transformer.dim, eps=LAYER_NORM_EPS)
        self.cross = WhisperAttention(transformer)
        self.age = nn.Parameter(torch.zeros(transformer.num_heads, config.whisper.audio_context))
        self.prefix = nn.Parameter(torch.zeros(2, transformer.num_heads, config.whisper.prefix, transformer.head_dim))
        if languages := len(config.languages):
            self.languages = nn.Parameter(torch.zeros(languages, *self.prefix.shape))
        self.norm3 = nn.LayerNorm(transformer.dim, eps=LAYER_NORM_EPS)
        self.ffn = WhisperFeedForward(transformer)

    def forward(
        self,
        x_BTD: Tensor,
        audio_BTD: Tensor,
        at: _Places,
        text_ring: LayerRing | None,
        audio_ring: LayerRing | None,
        language_B: Tensor | None = None,
    ) -> Tensor:
        x = self.norm1(x_BTD)
        keys = _keys(self.attn, x, at.text_columns_BT, text_ring)
        prefix_2BHPD = self._prefixes(language_B, len(x)).to(x.dtype)
        k, v = (torch.cat(pair, dim=2) for pair in zip(prefix_2BHPD, keys, strict=True))
        mask = F.pad(at.text_mask, (self.prefix.shape[2], 0))
        x_BTD = x_BTD + self.attn.output(attend(self.attn.queries(x), k, v, mask))
        keys = _keys(self.cross, audio_BTD, at.audio_columns_BT, audio_ring)
        # [H, B, T, C] -> [B, H, T, C]
        mask = at.audio_mask + self.age[:, at.ages_BTC].transpose(0, 1).to(x_BTD.dtype)
        if at.keys_each > 1:
            mask = mask.repeat_interleave(at.keys_each, dim=-1)
        x_BTD = x_BTD + self.cross.output(attend(self.cross.queries(self.norm2(x_BTD)), *keys, mask))
        return x_BTD + cast(Tensor, self.ffn(self.norm3(x_BTD)))

    def _prefixes(self, language_B: Tensor | None, batch: int) -> Tensor:
        if language_B is None:
            return self.prefix[:, None].expand(-1, batch, -1, -1, -1)
        added = F.pad(self.languages, (0, 0) * 4 + (1, 0))  # number 0 is no language
        return (self.prefix + added[language_B]).transpose(0, 1)


class WhisperDecoder(nn.Module):
    """A stack of layers.

    The state is the last text, the ring of text with the position of that text, and that of audio with the next vector;
    for a model with languages also the number of the stream's language, 0 for none.
    A stream that is not to advance must read text: the step then writes the next column, which nothing sees yet.
    """

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        assert config.whisper is not None
        self.config, self.whisper = config.transformer, config.whisper
        self.positions = nn.Parameter(torch.zeros(config.whisper.num_positions, config.transformer.dim))
        dim, vectors = config.transformer.dim, config.whisper.vectors
        self.spread = nn.Linear(dim, vectors * dim) if vectors > 1 else None
        self.layers = nn.ModuleList(WhisperDecoderLayer(config) for _ in range(config.transformer.num_layers))

    def init_state(self, batch: int, max_step: int, rings: RingFormat | None = None) -> dict[str, State]:
        """State for `batch` streams that advance by one step at a time."""
        if max_step != 1:
            raise ValueError(f"Whisper's decoder advances by one position at a time, not by {max_step}")
        config, like = self.config, self.positions
        form = rings and RingFormat(rings.int8, align=rings.align, dtype=rings.dtype)

        def number(value: int) -> Tensor:
            return torch.full((batch,), value, dtype=torch.int64, device=like.device)

        def ring(position: int, context: int, step: int) -> dict[str, State]:
            shape = (config.num_layers, batch, config.num_heads, ring_capacity(context, 1), config.head_dim)
            made = Ring.empty(shape, device=like.device, dtype=like.dtype, format=form, step=step)
            return {"position": number(position), "ring": made}

        # A step writes the column of the last text position, or the next one, which a spare column keeps free.
        text = ring(-1, config.context + 1, step=2)
        audio = ring(0, self.whisper.audio_columns, step=self.whisper.vectors)
        language = {"language": number(0)} if self.whisper.languages else {}
        return {"held": number(PAD_ID), "text": text, "audio": audio, **language}

    def forward(
        self,
        text_BT: Tensor,
        embedding: nn.Module,
        audio_BTD: Tensor,
        state: State | None = None,
        first_B: Tensor | None = None,
    ) -> tuple[Tensor, State | None]:
        """The text tokens that each step reads, and the embedded audio of its frame, to the output `[B, T, D]`.

        `first_B`: the number of each row's first token, for whole sequences; 0 by default.
        """
        if state is not None:
            return self._step(text_BT, embedding, audio_BTD, cast("dict[str, State]", state))
        new_BT = is_text(text_BT)
        position_BT = new_BT.cumsum(dim=1) - 1
        step_T = torch.arange(text_BT.shape[1], device=text_BT.device)
        held_BT = text_BT.gather(1, torch.where(new_BT, step_T, 0).cummax(dim=1).values)
        # Of the steps with one text position, a later one sees the last.
        last_BT = F.pad(new_BT[:, 1:], (0, 1))
        query, key = position_BT[:, :, None], position_BT[:, None]
        seen = sees(query, key, self.config.context) & (key < query) & last_BT[:, None]
        seen = seen | torch.eye(len(step_T), dtype=torch.bool, device=text_BT.device)
        age_TT = step_T[:, None] - step_T
        heard = sees(step_T[:, None], step_T, self.whisper.audio_context)
        places = _Places(
            position_BT,
            _mask(seen, audio_BTD.dtype),
            position_BT,
            _mask(heard[None], audio_BTD.dtype),
            age_TT.clamp(0, self.whisper.audio_context - 1)[None],
            self.whisper.vectors,
        )
        if first_B is not None:
            position_BT = position_BT + first_B[:, None]
        x_BTD = self._embed(text_BT, held_BT, position_BT, embedding, audio_BTD.dtype)
        audio_BTD = self._vectors(audio_BTD)
        for layer in self.layers:
            x_BTD = layer(x_BTD, audio_BTD, places, None, None)
        return x_BTD, None

    def _step(
        self, text_B1: Tensor, embedding: nn.Module, audio_B1D: Tensor, state: dict[str, State]
    ) -> tuple[Tensor, State]:
        V = self.whisper.vectors
        (text, last_B), (audio, next_B) = (
            cast("tuple[Ring, Tensor]", unpack(state[name])) for name in ("text", "audio")
        )
        new_B1 = is_text(text_B1)
        held_B1 = torch.where(new_B1, text_B1, cast(Tensor, state["held"])[:, None])
        position_B1 = last_B[:, None] + new_B1
        vector_BV = next_B[:, None] + torch.arange(V, device=text_B1.device)
        frame_B1 = next_B[:, None] // V
        text_keys_BC = ring_keys(position_B1, torch.arange(text.capacity, device=text_B1.device))
        audio_keys_BC = ring_keys(vector_BV[:, -1:], torch.arange(audio.capacity, device=text_B1.device)) // V
        ages_B1C = (frame_B1 - audio_keys_BC)[:, None]
        places = _Places(
            position_B1 % text.capacity,
            _mask(sees(position_B1[..., None], text_keys_BC[:, None], self.config.context), audio_B1D.dtype),
            vector_BV % audio.capacity,
            _mask(sees(frame_B1[..., None], audio_keys_BC[:, None], self.whisper.audio_context), audio_B1D.dtype),
            ages_B1C.clamp(0, self.whisper.audio_context - 1),
            1,
        )
        audio_BVD = self._vectors(audio_B1D)
        language_B = cast("Tensor | None", state.get("language"))
        x_B1D = self._embed(text_B1, held_B1, position_B1, embedding, audio_B1D.dtype)
        for i, layer in enumerate(self.layers):
            x_B1D = layer(x_B1D, audio_BVD, places, text.layer(i), audio.layer(i), language_B)
        rings: dict[str, State] = {
            "text": {"position": position_B1[:, 0], "ring": text},
            "audio": {"position": next_B + V, "ring": audio},
        }
        language: dict[str, State] = {} if language_B is None else {"language": language_B}
        return x_B1D, {"held": held_B1[:, 0], **rings, **language}

    def _vectors(self, audio_BTD: Tensor) -> Tensor:
        """What the layers attend to, `[B, T * V, D]`, from the embedded audio of T frames."""
        if self.spread is None:
            return audio_BTD
        vectors: Tensor = self.spread(audio_BTD).unflatten(-1, (self.whisper.vectors, -1)).flatten(1, 2)
        return vectors

    def _embed(
        self, text_BT: Tensor, held_BT: Tensor, position_BT: Tensor, embedding: nn.Module, dtype: torch.dtype
    ) -> Tensor:
        """The last token and its position, and the vector of a step without a new one: PAD, or the start of a word."""
        x_BTD = embedding(held_BT) + self.positions[self.whisper.position(position_BT)]
        waits = embedding(text_BT) * ~is_text(text_BT)[..., None]
        embedded: Tensor = (x_BTD + waits).to(dtype)
        return embedded


def _keys(
    attention: WhisperAttention, x_BTD: Tensor, columns_BT: Tensor, ring: LayerRing | None
) -> tuple[Tensor, Tensor]:
    keys = attention.keys(x_BTD)
    if ring is None:
        return keys
    ring.write(columns_BT, *keys)
    return ring.read(x_BTD.dtype)


def _mask(visible_BTC: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible_BTC.shape, device=visible_BTC.device, dtype=dtype)
    return mask.masked_fill(~visible_BTC, -math.inf)[:, None]
