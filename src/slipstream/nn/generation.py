"""Generation with delayed streams: one step of text, and of audio where the model has a depth Transformer.

Stream s of a step has a delay of `delays[s]` steps: what is written in step t belongs to frame `t - delays[s]`. The
state of a stream of tokens holds its last `max_delay + 2` steps, position p in column p modulo that number. It is a
tail, as everything here: a step returns new tensors, which `commit` copies for the slots that advance.
Shapes: B slots, K codebooks, C columns, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from slipstream.model.config import SamplingConfig
from slipstream.model.numerics import NO_TOKEN, UNGENERATED
from slipstream.nn.lm import LM
from slipstream.nn.sampling import pick_token
from slipstream.nn.state import State

Hook = Callable[[Tensor], object]
Pick = Callable[[Tensor, SamplingConfig, int], Tensor]


@dataclass(frozen=True)
class Conditions:
    """What a batch of streams is conditioned on.

    Attributes:
        sum_BD: What is added to every input.
        cross: Keys and values of what the cross-attention reads, `[B, L, 2, H, S, head_dim]`.
        null_sum_BD: The same without the conditions, for guidance.
        null_cross: The same without the conditions, for guidance.
        masked_until_B: For guidance, the step of each stream up to which its tokens are hidden from the null half.
    """

    sum_BD: Tensor | None = None
    cross: Tensor | None = None
    null_sum_BD: Tensor | None = None
    null_cross: Tensor | None = None
    masked_until_B: Tensor | None = None


@dataclass(frozen=True)
class Hooks:
    """Functions that a step calls with what it has computed, to read it or to change it in place.

    Attributes:
        text_logits: Gets the text scores `[B, 1, 1, V]`.
        text: Gets the text tokens `[B]`, before the depth Transformer reads them.
        audio: Gets the audio tokens `[B, K]`.
    """

    text_logits: Hook | None = None
    text: Hook | None = None
    audio: Hook | None = None


@dataclass(frozen=True)
class Step:
    """The result of a step.

    Attributes:
        tokens_BK: Text and audio of the newest frame that is complete, `[B, 1 + codebooks]`; `UNGENERATED` before.
        hidden_B1D: The LM's output.
        update: What `commit` copies into the state.
    """

    tokens_BK: Tensor
    hidden_B1D: Tensor
    update: dict[str, State]


@dataclass(frozen=True)
class Generator:
    """How a model generates.

    Attributes:
        lm: The model.
        codebooks: Audio streams that are written, the first ones; the others are given to each step.
        text: How text tokens are picked.
        audio: How audio tokens are picked.
        guidance: Factor of classifier-free guidance; 1 for none. The null half has its own state.
        no_text: With guidance, the null half reads no text, and the text scores are not guided.
        pick: Picks tokens from scores `[B, V]`; the number of the stream comes third.
    """

    lm: LM
    codebooks: int
    text: SamplingConfig
    audio: SamplingConfig
    guidance: float = 1.0
    no_text: bool = False
    pick: Pick = field(default=lambda logits, sampling, _: pick_token(logits, sampling))

    @property
    def delays(self) -> tuple[int, ...]:
        """Steps by which the text and each codebook lag."""
        return self.lm.config.stream_delays

    @property
    def max_delay(self) -> int:
        """The longest delay."""
        return max(self.delays)

    def init_state(self, batch: int) -> dict[str, State]:
        """State of `batch` fresh streams."""
        device = self.lm.text_linear.weight.device
        shape = (batch, self.lm.config.num_codebooks + 1, self.max_delay + 2)
        state: dict[str, State] = {
            "lm": self.lm.init_state(batch),
            "tokens": torch.full(shape, UNGENERATED, dtype=torch.int64, device=device),
            "offset": torch.zeros(batch, dtype=torch.int64, device=device),
        }
        if self.guidance != 1.0:
            state["null"] = self.lm.init_state(batch)
        return state

    def step(
        self,
        state: dict[str, State],
        given_BK: Tensor,
        active_B: Tensor,
        conditions: Conditions,
        hooks: Hooks,
        replaced_BK: Tensor | None = None,
    ) -> Step:
        """Generate one step.

        Args:
            state: The state of the streams.
            given_BK: Tokens of the codebooks that are not written, `[B, num_codebooks - codebooks]`.
            active_B: Which streams advance. The others read initial tokens.
            conditions: What the streams are conditioned on.
            hooks: Called with the scores and tokens.
            replaced_BK: Audio tokens to use instead of those of the depth Transformer, which does not run.
        """
        tokens_BKC, offset_B = cast(Tensor, state["tokens"]).clone(), cast(Tensor, state["offset"])
        delay_K = torch.tensor(self.delays, device=offset_B.device)
        _write(tokens_BKC, slice(self.codebooks + 1, None), offset_B[:, None] + delay_K[self.codebooks + 1 :], given_BK)
        first_BK = (offset_B[:, None] <= delay_K) | ~active_B[:, None]
        input_BK = torch.where(first_BK, self._initial(offset_B.device), _read(tokens_BKC, offset_B[:, None]))
        hidden_ND, lm_states, logits_B11V = self._text_logits(state, input_BK, first_BK, offset_B, delay_K, conditions)
        if hooks.text_logits is not None:
            hooks.text_logits(logits_B11V)
        text_B = self.pick(logits_B11V[:, 0, 0].float(), self.text, 0)
        if hooks.text is not None:
            hooks.text(text_B)
        offset_B = offset_B + 1
        _write(tokens_BKC, slice(0, 1), offset_B[:, None], text_B[:, None])
        if self.codebooks:
            audio_BK = replaced_BK if replaced_BK is not None else self._audio(hidden_ND, text_B)
            if hooks.audio is not None:
                hooks.audio(audio_BK)
            _write(tokens_BKC, slice(1, self.codebooks + 1), offset_B[:, None], audio_BK)
        written = delay_K[: self.codebooks + 1]
        out_BK = _read(tokens_BKC[:, : self.codebooks + 1], offset_B[:, None] - self.max_delay + written)
        complete_B = (offset_B > self.max_delay) & active_B
        out_BK = torch.where(complete_B[:, None], out_BK, UNGENERATED)
        update: dict[str, State] = {**lm_states, "tokens": tokens_BKC, "offset": offset_B}
        return Step(out_BK, hidden_ND[: len(text_B), None], update)

    def _initial(self, device: torch.device) -> Tensor:
        config = self.lm.config
        return torch.tensor([config.text_initial_id] + [config.audio_initial_id] * config.num_codebooks, device=device)

    def _text_logits(
        self,
        state: dict[str, State],
        input_BK: Tensor,
        first_BK: Tensor,
        offset_B: Tensor,
        delay_K: Tensor,
        conditions: Conditions,
    ) -> tuple[Tensor, dict[str, State], Tensor]:
        """The LM's output `[N, D]`, of the null half too with guidance; the new LM states; and the text scores."""
        lm = self.lm
        text_B1, audio_BK1 = input_BK[:, :1], input_BK[:, 1:, None]
        hidden, lm_state = lm(text_B1, audio_BK1, state["lm"], conditions.sum_BD, conditions.cross)
        logits = lm.text_logits(hidden)[:, None]
        assert lm_state is not None
        if self.guidance == 1.0:
            return hidden[:, 0], {"lm": lm_state}, logits
        if conditions.masked_until_B is not None:
            hidden_from_null = offset_B[:, None] <= delay_K + conditions.masked_until_B[:, None]
            input_BK = torch.where(hidden_from_null & ~first_BK, NO_TOKEN, input_BK)
        text_B1, audio_BK1 = input_BK[:, :1], input_BK[:, 1:, None]
        if self.no_text:
            text_B1 = torch.where(first_BK[:, :1], text_B1, NO_TOKEN)
        null, null_state = lm(text_B1, audio_BK1, state["null"], conditions.null_sum_BD, conditions.null_cross)
        assert null_state is not None
        if not self.no_text:
            null_logits = lm.text_logits(null)[:, None]
            logits = null_logits + (logits - null_logits) * self.guidance
        return torch.cat([hidden, null])[:, 0], {"lm": lm_state, "null": null_state}, logits

    def _audio(self, hidden_ND: Tensor, text_B: Tensor) -> Tensor:
        depth, streams = self.lm.depth, iter(range(1, self.codebooks + 1))
        assert depth is not None

        def pick(logits_NV: Tensor) -> Tensor:
            if self.guidance != 1.0:
                logits_NV, null_NV = logits_NV.chunk(2)
                logits_NV = null_NV + (logits_NV - null_NV) * self.guidance
            return self.pick(logits_NV.float(), self.audio, next(streams))

        return depth.write(hidden_ND, text_B, self.codebooks, pick)


def _read(tokens_BKC: Tensor, position_BK: Tensor) -> Tensor:
    """The token of each stream at a position, `[B, K]`."""
    columns = (position_BK % tokens_BKC.shape[2]).expand(tokens_BKC.shape[:2])
    return tokens_BKC.gather(2, columns[..., None])[..., 0]


def _write(tokens_BKC: Tensor, streams: slice, position_BK: Tensor, new_BK: Tensor) -> None:
    """Write the token of some streams at a position, in place."""
    part = tokens_BKC[:, streams]
    columns = (position_BK % tokens_BKC.shape[2]).expand(part.shape[:2])
    part.scatter_(2, columns[..., None], new_BK[..., None])
