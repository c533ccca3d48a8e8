"""OnnxRunner: the Runner of the CPU backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession

from slipstream.arrays import BoolArray, FloatArray
from slipstream.backends.onnx.codec import codec_model
from slipstream.backends.onnx.codec_streams import CodecStreams
from slipstream.backends.onnx.graph import Array, Model
from slipstream.backends.onnx.inference import open_session, physical_cores
from slipstream.backends.onnx.lm import lm_model
from slipstream.backends.onnx.sampling import candidates, logprob, pick, steered
from slipstream.backends.onnx.text_streams import text_streams
from slipstream.backends.onnx.transformer import Quantize, Weights
from slipstream.model.config import SamplingConfig, STTConfig
from slipstream.model.runner import BaseRunner, Candidates, Steering, StepOutput, StreamKind, fresh_state


@dataclass(frozen=True)
class SlotState:
    """One slot of an `OnnxRunner`, copied: number of frames, last text token, delay, and contents of the buffers.

    `first`: the number of its first frame. `delay`: the value of the condition; NaN for the model's own.
    """

    frames: int
    first: int
    text: int
    delay: float
    codec: Mapping[str, Array]
    lm: Mapping[str, Array]


class OnnxRunner(BaseRunner):
    """A codec and an LM over `slots` streams, in fixed buffers, on the CPU.

    Position 0, the initial tokens, runs once, in the constructor. `reset` copies its state into a slot, so that the
    first frame of a stream is processed as any other.

    Args:
        config: The model.
        lm: Canonical weights, or an ONNX file that `export` wrote.
        codec: The same.
        slots: Number of streams.
        threads: CPU threads; all physical cores by default.
        quantize: Precision of the LM's weights, for weights that are not from a file.
        sampling: How tokens are picked; the configuration's by default.
        seed: Seed of the sampling.
    """

    def __init__(
        self,
        config: STTConfig,
        lm: Weights | Path,
        codec: Weights | Path,
        *,
        slots: int = 1,
        threads: int | None = None,
        quantize: Quantize = None,
        sampling: SamplingConfig | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(config, slots, sampling)
        self._random = np.random.default_rng(seed)
        K = config.lm.num_codebooks
        threads = physical_cores() if threads is None else threads

        def open_part(part: Weights | Path, graph: Callable[[Weights], Model]) -> InferenceSession:
            return open_session(part if isinstance(part, Path) else graph(part), threads=threads)

        codec_graph = partial(codec_model, config.codec, num_codebooks=K, quantize=quantize)
        lm_graph = partial(lm_model, config.lm, condition=config.condition_values, quantize=quantize)
        with ThreadPoolExecutor(1) as pool:  # each expands and packs its weights
            opening = pool.submit(open_part, codec, codec_graph)
            lm_session = open_part(lm, lm_graph)
            codec_session = opening.result()
        self.codec = CodecStreams(config.codec, codec_session, slots, K)
        self.max_ahead = self.codec.max_ahead
        self.lm = text_streams(config.lm, lm_session, slots, self.codec.codes_BK)
        self._frames_B = np.zeros(slots, np.int64)
        self._token_B = np.zeros(slots, np.int64)
        self._logprob_B = np.zeros(slots, np.float32)
        self._first = text_streams(config.lm, lm_session, 1, np.full((1, K), config.lm.audio_initial_id))
        self._fresh_codec = self.codec.read(0, frames=0)
        self._unprimed = self._first.read(0, position=0)
        self._fresh = self._prime(np.nan)
        self._fresh_of: dict[StreamKind, SlotState] = {}
        self.reset(range(slots))

    def reset(self, slots: Sequence[int], delay: float | None = None, first_frame: int = 0, language: int = 0) -> None:
        """Start a new stream in each of `slots`, whose first frame has the number `first_frame`."""
        value = np.nan if delay is None else float(self.with_delay(delay).condition_values["delay"])
        self.check_language(language)
        fresh, kind = self._fresh, (delay, language)
        if kind != (None, 0):
            fresh = fresh_state(self._fresh_of, kind, lambda: self._prime(value, language))
        for slot in slots:
            self.restore(slot, fresh)
        self.codec.first_B[list(slots)] = first_frame

    def step(self, pcm_BS: FloatArray, active_B: BoolArray, steering: Steering | None = None) -> StepOutput:
        """Advance the active slots by one frame of samples `[B, frame_samples]`.

        Raises `ValueError` and `AudioError` as `check_step` does.
        """
        pcm_BS = self.check_step(pcm_BS, active_B)
        if steering is not None:
            self.check_steering(steering)
        rows = self._rows(active_B)
        found = self._run(pcm_BS, active_B, rows, steering) if rows else None
        return StepOutput(self._token_B.copy(), self._logprob_B.copy(), self.lm.pause_BH.copy(), found)

    def encode(self, slots: Sequence[int], pcm_FS: FloatArray) -> None:
        """Encode the next F frames of `slots` ahead of their steps. Raises `ValueError` and `AudioError`."""
        self.check_encode(slots, pcm_FS)
        if (ahead := self.codec.ahead_B[list(slots)]).any():
            raise ValueError(f"slots {list(slots)} have {ahead.tolist()} encoded frames left: use them first")
        self.codec.encode(slots, int(self._frames_B[slots[0]]), pcm_FS)

    def force(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """Replace the last text token of each of `slots`."""
        self.check_force(slots, tokens)
        self.lm.text_B[list(slots)] = list(tokens)

    def copy_text(self, source: int, target: int) -> None:
        """Continue the text of one slot in a second one, which has had the same audio."""
        self.check_slots([source, target])
        self.lm.text_B[target] = self.lm.text_B[source]
        self.lm.copy_text(source, target, int(self._frames_B[source]) + 1)

    def snapshot(self, slot: int) -> SlotState:
        """Copy one slot's state."""
        self.check_slots([slot])
        frames = int(self._frames_B[slot])
        text = int(self.lm.text_B[slot])
        first, delay = int(self.codec.first_B[slot]), float(self.lm.delay_B[slot])
        return SlotState(frames, first, text, delay, self.codec.read(slot, frames), self.lm.read(slot, frames + 1))

    def restore(self, slot: int, state: SlotState) -> None:
        """Put a snapshot of this runner, or of another runner of the same model, into `slot`."""
        self.check_slots([slot])
        self._frames_B[slot] = state.frames
        self.codec.first_B[slot] = state.first
        self.lm.text_B[slot] = state.text
        self.lm.delay_B[slot] = state.delay
        self.codec.write(slot, state.codec)
        self.lm.write(slot, state.lm)

    def _rows(self, active_B: BoolArray) -> int:
        """Number of first slots to run: an even number, because the 8-bit kernels multiply rows in pairs.

        The last row of an odd number is summed in another order, so a slot's bits would depend on its neighbours.
        """
        last = int(np.flatnonzero(active_B).max(initial=-1))
        return min(last + 1 + (last + 1) % 2, self.slots)

    def _run(self, pcm_BS: FloatArray, active_B: BoolArray, rows: int, steering: Steering | None) -> Candidates | None:
        """Run a step of the first `rows`. Returns their candidates, if the step is steered."""
        self.codec.pcm_BS[:rows] = pcm_BS[:rows]
        self.codec.step(self._frames_B[:rows], active_B[:rows])
        position_B = self._frames_B + 1
        self.lm.step(position_B[:rows], active_B[:rows])
        logits_BV = self.lm.logits_BV[:rows]
        scores_BV = logits_BV if steering is None else steered(logits_BV, steering)
        self._token_B[:rows] = pick(scores_BV, self.sampling, self._random)
        self._logprob_B[:rows] = logprob(logits_BV, self._token_B[:rows])
        self.codec.commit(active_B)
        self.lm.text_B[active_B] = self._token_B[active_B]
        self._frames_B += active_B
        return None if steering is None else candidates(logits_BV, scores_BV)

    def _prime(self, delay: float, language: int = 0) -> SlotState:
        lm = self._first
        lm.write(0, {**self._unprimed, "language": np.array(language)})
        lm.delay_B[:] = delay
        lm.text_B[:] = self.config.lm.text_initial_id
        lm.step(np.zeros(1, np.int64), np.ones(1, np.bool_))
        text = int(lm.logits_BV[0].argmax())
        return SlotState(0, 0, text, delay, self._fresh_codec, lm.read(0, position=1))
