"""MLXRunner: the Runner of the MLX backend, for Apple silicon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import mlx.core as mx
import numpy as np

from slipstream.arrays import BoolArray, FloatArray
from slipstream.backends.mlx.build import Arrays, build_codec, build_lm
from slipstream.backends.mlx.layers import Positions
from slipstream.backends.mlx.lm import LMPositions, LMState
from slipstream.backends.mlx.state import commit, read_slot, write_slots
from slipstream.backends.mlx.whisper import WhisperPositions
from slipstream.model.config import PAD_ID, SamplingConfig, STTConfig
from slipstream.model.runner import (
    CANDIDATES,
    MAX_BIASED,
    BaseRunner,
    Candidates,
    Steering,
    StepOutput,
    StreamKind,
    fresh_state,
)


@dataclass(frozen=True)
class SlotState:
    """One slot of an `MLXRunner`, copied: a batch of one, the number of frames so far, and that of the first one."""

    state: RunnerState
    frames: int
    first: int


class RunnerState(TypedDict):
    """The state of all slots: the codec's, the LM's, each stream's last text token `[B]` and condition `[B, D]`."""

    codec: dict[str, Any]
    lm: LMState
    text: mx.array
    condition: mx.array


class Inputs(NamedTuple):
    """The inputs of a step, in addition to the state. `key`: seeds the random numbers of this step."""

    pcm_BS: mx.array
    active_B: mx.array
    codec_at: Positions | WhisperPositions
    lm_at: LMPositions
    key: mx.array
    biases: tuple[mx.array, ...]


class MLXRunner(BaseRunner):
    """A codec and an LM over `slots` streams.

    A step encodes a frame, passes its tokens and each stream's last text token to the LM, and picks the next text
    token. It is one compiled function from state and inputs to outputs and state. Position 0, the initial tokens, runs
    once, in the constructor. `reset` copies its state into a slot, so that the first frame of a stream is processed as
    any other.

    `lm` and `codec` are canonical weights; for `dtype` and `quantize` see `build_lm`. The codec is always float32.
    """

    def __init__(
        self,
        config: STTConfig,
        lm: Arrays,
        codec: Arrays,
        *,
        slots: int = 1,
        sampling: SamplingConfig | None = None,
        dtype: str = "float32",
        quantize: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(config, slots, sampling)
        self.codec = build_codec(config.codec, codec, quantize=quantize)
        self.lm = build_lm(config.lm, lm, dtype=dtype, quantize=quantize)
        self._random = np.random.default_rng(seed)
        self._fresh = self._prime(config)
        self._fresh_of: dict[StreamKind, RunnerState] = {}
        self._state = write_slots(self._empty(slots), range(slots), self._fresh)
        self._frames_B = np.zeros(slots, dtype=np.int64)
        self._first_B = np.zeros(slots, dtype=np.int64)
        mx.eval(self._fresh, self._state)
        self._compiled = mx.compile(self._step)

    def reset(self, slots: Sequence[int], delay: float | None = None, first_frame: int = 0, language: int = 0) -> None:
        """Start a new stream in each of `slots`, whose first frame has the number `first_frame`."""
        self.check_slots(slots)
        self.check_language(language)
        config, fresh, kind = self.with_delay(delay), self._fresh, (delay, language)
        if kind != (None, 0):
            fresh = fresh_state(self._fresh_of, kind, lambda: self._prime(config, language))
        self._write(slots, fresh)
        self._frames_B[list(slots)] = 0
        self._first_B[list(slots)] = first_frame

    def step(self, pcm_BS: FloatArray, active_B: BoolArray, steering: Steering | None = None) -> StepOutput:
        """Advance the active slots by one frame of samples `[B, frame_samples]`.

        Raises `ValueError` and `AudioError` as `check_step` does.
        """
        return self.launch(pcm_BS, active_B, steering)()

    def launch(
        self, pcm_BS: FloatArray, active_B: BoolArray, steering: Steering | None = None
    ) -> Callable[[], StepOutput]:
        """Begin a step on the device."""
        inputs = Inputs(
            pcm_BS=mx.array(self.check_step(pcm_BS, active_B)),
            active_B=mx.array(active_B),
            codec_at=self.codec.locate(self._frames_B, self._first_B),
            lm_at=self.lm.transformer.locate(self._frames_B + 1),
            key=mx.array(self._random.integers(2**32, size=2, dtype=np.uint32)),
            biases=() if steering is None else self._biases(steering),
        )
        # MLX reuses the rings only if no name refers to the old state when the new one is computed.
        output, self._state = self._compiled(self._state, inputs)
        mx.async_eval(output, self._state)
        self._frames_B += active_B

        def collect() -> StepOutput:
            token_B, logprob_B, pause_BH, *others = (np.array(part) for part in output)
            found = None
            if others:
                token_BK, logprob_BK, plain_B, plain_logprob_B = others
                found = Candidates(token_BK.astype(np.int64), logprob_BK, plain_B.astype(np.int64), plain_logprob_B)
            return StepOutput(token_B.astype(np.int64), logprob_B, pause_BH, found)

        return collect

    def force(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """Replace the last text token of each of `slots`."""
        self.check_force(slots, tokens)
        text_B = np.array(self._state["text"])
        text_B[list(slots)] = list(tokens)
        self._state["text"] = mx.array(text_B)

    def snapshot(self, slot: int) -> SlotState:
        """Copy one slot's state."""
        self.check_slots([slot])
        state = read_slot(self._state, slot)
        mx.eval(state)
        return SlotState(state, int(self._frames_B[slot]), int(self._first_B[slot]))

    def restore(self, slot: int, state: SlotState) -> None:
        """Put a snapshot of this runner, or of another runner of the same model, into `slot`."""
        self.check_slots([slot])
        self._write([slot], state.state)
        self._frames_B[slot] = state.frames
        self._first_B[slot] = state.first

    def _biases(self, steering: Steering) -> tuple[mx.array, mx.array]:
        """The arrays of a `Steering`, with a fixed size so that the step is compiled once."""
        self.check_steering(steering)
        spare = ((0, 0), (0, MAX_BIASED - steering.id_BN.shape[1]))
        ids, biases = np.pad(steering.id_BN.astype(np.int32), spare), np.pad(steering.bias_BN, spare)
        return mx.array(ids), mx.array(biases)

    def _write(self, slots: Sequence[int], saved: RunnerState) -> None:
        self._state = write_slots(self._state, slots, saved)
        mx.eval(self._state)

    def _empty(self, batch: int, language: int = 0) -> RunnerState:
        return {
            "codec": self.codec.init_state(batch),
            "lm": self.lm.init_state(batch, language),
            "text": mx.full((batch,), PAD_ID, mx.int32),
            "condition": mx.zeros((batch, self.config.lm.transformer.dim), self.lm.dtype),
        }

    def _prime(self, config: STTConfig, language: int = 0) -> RunnerState:
        state = self._empty(1, language)
        state["condition"] = self.lm.condition(config.condition_values)[None]
        text_B = mx.array([self.config.lm.text_initial_id])
        audio_BK = mx.full((1, self.config.lm.num_codebooks), self.config.lm.audio_initial_id)
        at = self.lm.transformer.locate(np.zeros(1, dtype=np.int64))
        hidden_BD, state["lm"] = self.lm(text_B, audio_BK, state["lm"], at, state["condition"])
        state["text"] = mx.argmax(self.lm.text_logits(hidden_BD), axis=-1).astype(mx.int32)
        whisper = self.config.lm.whisper
        return read_slot(state, 0, columns=max(whisper.vectors, whisper.prefix + 1) if whisper else 1)

    def _step(self, state: RunnerState, inputs: Inputs) -> tuple[tuple[mx.array, ...], RunnerState]:
        """One step to token `[B]`, log-probability `[B]`, pause probability `[B, H]`, and the new state.

        With biases, the parts of `Candidates` follow.
        """
        codes_B1K, codec_state = self.codec.encode(
            inputs.pcm_BS, state["codec"], inputs.codec_at, self.config.lm.num_codebooks
        )
        text_B = state["text"]
        if self.config.lm.whisper:
            text_B = mx.where(inputs.active_B, text_B, self.config.lm.text_initial_id)
        hidden_BD, lm_state = self.lm(text_B, codes_B1K[:, 0], state["lm"], inputs.lm_at, state["condition"])
        logits_BV = self.lm.text_logits(hidden_BD).astype(mx.float32)
        scores_BV = logits_BV
        if inputs.biases:
            id_BN, bias_BN = inputs.biases
            scores_BV = logits_BV.at[mx.arange(len(logits_BV))[:, None], id_BN].add(bias_BN)
        token_B = self._pick(scores_BV, inputs.key)
        update = RunnerState(codec=codec_state, lm=lm_state, text=token_B, condition=state["condition"])
        chosen_B = mx.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0]
        total_B = mx.logsumexp(logits_BV, axis=-1)
        logprob_B = chosen_B - total_B
        pause_BH = mx.softmax(self.lm.pause_logits(hidden_BD).astype(mx.float32), axis=-1)[..., 0]
        output: tuple[mx.array, ...] = (token_B, logprob_B, pause_BH)
        if inputs.biases:
            candidate_BK = mx.argsort(-scores_BV, axis=-1)[:, :CANDIDATES]
            plain_B, plain_logprob_B = mx.argmax(logits_BV, axis=-1), logits_BV.max(axis=-1) - total_B
            logprob_BK = mx.take_along_axis(logits_BV, candidate_BK, axis=1) - total_B[:, None]
            output += (candidate_BK, logprob_BK, plain_B, plain_logprob_B)
        return output, commit(state, update, inputs.active_B)

    def _pick(self, logits_BV: mx.array, key: mx.array) -> mx.array:
        if self.sampling.temperature == 0:
            return mx.argmax(logits_BV, axis=-1).astype(mx.int32)
        if 0 < self.sampling.top_k < logits_BV.shape[-1]:
            least = mx.topk(logits_BV, self.sampling.top_k, axis=-1).min(axis=-1, keepdims=True)
            logits_BV = mx.where(logits_BV < least, -mx.inf, logits_BV)
        return mx.random.categorical(logits_BV / self.sampling.temperature, key=key).astype(mx.int32)
