"""TorchRunner: the Runner of the PyTorch backend, on CPU or CUDA."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slipstream.arrays import BoolArray, FloatArray, IntArray
from slipstream.backends.torch.buckets import Bucket, Buckets
from slipstream.backends.torch.graphs import capture
from slipstream.model.config import PAD_ID, SamplingConfig, STTConfig, TransformerConfig
from slipstream.model.runner import CANDIDATES, MAX_BIASED, BaseRunner, Candidates, Steering, StepOutput, fresh_state
from slipstream.nn import fused
from slipstream.nn.attention import chosen_sdpa, kernels_fit, kernels_work, sdpa_name
from slipstream.nn.layers import RMSNorm
from slipstream.nn.lm import LM
from slipstream.nn.mimi import Mimi
from slipstream.nn.ring import RingFormat
from slipstream.nn.sampling import pick_token
from slipstream.nn.state import (
    Savepoint,
    Savepoints,
    State,
    commit,
    first_slots,
    read_slot,
    read_slots,
    reset_rows,
    write_slots,
)

logger = logging.getLogger(__name__)

SAVED_EXTRA_STEPS = 26
"""Steps after the delay that a savepoint covers: a flush's incomplete frame, and what the model still writes."""
SLOTS_PER_SAVEPOINT = 16
"""One savepoint is allocated for this many slots, and 8 at least. Further ones are copied to the host."""
CUDA_ALIGNMENT = 64
"""The capacity of a ring on CUDA is a multiple of this, so that no attention kernel has to pad its mask."""


@dataclass(frozen=True)
class SlotState:
    """One slot of a `TorchRunner`, copied: a batch of one."""

    state: State


class TorchRunner(BaseRunner):
    """A codec and an LM over `slots` streams, in fixed buffers.

    A step encodes a frame, passes its tokens and each stream's last text token to the LM, and picks the next text
    token. It runs over the smallest of the `buckets` that holds the active slots. On CUDA the step of each bucket is
    one captured graph, and the host waits for the device once per step. Position 0, the initial tokens, runs once, in
    the constructor. `reset` copies its state into a slot, so that a stream's first frame is processed as any other.

    Args:
        config: The model.
        codec: The codec, in float32.
        lm: The LM.
        slots: Number of streams.
        sampling: How tokens are picked; the configuration's by default.
        seed: Seed of the sampling, on the CPU only.
        buckets: Batch sizes, ascending up to `slots`; `buckets.default_sizes` by default.
        tf32: Round the inputs of float32 products to TF32 on CUDA: faster, but some of the codec's tokens change.
        rings: How the LM's keys and values are kept (`int8` and `hadamard`); the codec's stay float32.
        kernels: Whether to use the Triton kernels; by default where they can run. They are left out, with a warning,
            if they fail or their results differ from PyTorch's.

    Attributes:
        attention: What computes the attention of the `codec` and the `lm`: `kernels`, or the name of PyTorch's kernel.
        captured: For each bucket, whether its step is a CUDA graph; empty on the CPU.
    """

    def __init__(
        self,
        config: STTConfig,
        codec: Mimi,
        lm: LM,
        *,
        slots: int = 1,
        sampling: SamplingConfig | None = None,
        seed: int | None = None,
        buckets: Sequence[int] | None = None,
        tf32: bool = False,
        rings: RingFormat | None = None,
        kernels: bool | None = None,
    ) -> None:
        super().__init__(config, slots, sampling)
        self.codec = codec.eval().requires_grad_(False)
        self.lm = lm.eval().requires_grad_(False)
        self.device = lm.text_linear.weight.device
        for module in self.lm.modules():
            if isinstance(module, RMSNorm):
                module.float()  # its arithmetic is in float32: this casts the weight once, not in every step
        self._tf32 = tf32
        self._formats = self._ring_formats(
            rings or RingFormat(), fused.available(self.device) if kernels is None else kernels
        )
        self.attention = {name: self._attention(name) for name in self._formats}
        logger.info("attention: codec %(codec)s, lm %(lm)s", self.attention)
        indexed = all(form.kernels for form in self._formats.values())
        self._buckets = Buckets(slots, buckets, indexed=indexed)
        self._generator = None
        if seed is not None:
            if self.device.type == "cuda":
                raise ValueError("a seed cannot be set on CUDA: call torch.manual_seed before you create the runner")
            self._generator = torch.Generator(self.device).manual_seed(seed)
        # A separate stream, because another thread than the one that captures may call `step`.
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with self._on_device():
            self._fresh = self._prime(config)
            self._fresh_of: dict[tuple[float | None, int], State] = {}  # by delay and language
            self._state = self._empty(slots)
            self._pending_B = np.zeros(slots, np.bool_)  # slots that their next step resets
            entries = min(slots, max(8, slots // SLOTS_PER_SAVEPOINT))
            self._savepoints = Savepoints(self._state, entries, config.delay_frames + SAVED_EXTRA_STEPS)
            write_slots(self._state, self._index(range(slots)), self._fresh)
            shape = slots, self.frame_samples, config.lm.pause_heads
            self._device_io = _Buffers.empty(*shape, device=self.device)
            self._host_io = _Buffers.empty(*shape, pinned=self._stream is not None)
            self._steps: dict[Bucket, Callable[[], None]] = {}
            for bucket in self._buckets.all:
                self._steps[bucket] = partial(self._step, bucket)
            # On CUDA the graph of a step holds both; elsewhere they cost time only in a step that needs them.
            self._resets = self._steers = True
            self._biased = False  # whether the device's buffers hold a bias
            self.captured = {} if self._stream is None else self._capture(self._stream)

    def reset(self, slots: Sequence[int], delay: float | None = None, first_frame: int = 0, language: int = 0) -> None:
        """Start a new stream in each of `slots`, whose first frame has the number `first_frame`."""
        self.check_slots(slots)
        self.check_language(language)
        config, kind = self.with_delay(delay), (delay, language)
        self._pending_B[list(slots)] = kind == (None, 0)
        if kind != (None, 0):
            with self._on_device():
                fresh = fresh_state(self._fresh_of, kind, lambda: self._prime(config, language))
                write_slots(self._state, self._index(slots), fresh)
        if first_frame and self.config.codec.whisper:
            with self._on_device():
                for slot in slots:
                    self._reset_now(slot)
                self.codec.set_first_frame(self._state["codec"], self._index(slots), first_frame)

    def step(self, pcm_BS: FloatArray, active_B: BoolArray, steering: Steering | None = None) -> StepOutput:
        """Advance the active slots by one frame of samples `[B, frame_samples]`.

        Raises `ValueError` and `AudioError` as `check_step` does.
        """
        return self.launch(pcm_BS, active_B, steering)()

    def launch(
        self, pcm_BS: FloatArray, active_B: BoolArray, steering: Steering | None = None
    ) -> Callable[[], StepOutput]:
        """Begin a step on the device; its output goes to the host while the caller does something else."""
        self.check_shapes(pcm_BS, active_B)
        if steering is not None:
            self.check_steering(steering)
        bucket, slots = self._buckets.choose(active_B)
        host, device = self._host_io.first(bucket.size), self._device_io.first(bucket.size)
        slot_R = np.arange(self.slots)[slots]
        host.pcm_BS.numpy()[:] = self.check_samples(pcm_BS, active_B, slot_R)
        host.active_B.numpy()[:] = active_B[slots]
        host.slot_B.numpy()[:] = slot_R
        host.reset_B.numpy()[:] = self._pending_B[slots]
        self._resets = bool(self._pending_B[slots].any())
        self._pending_B[slots] = False
        self._steers = steering is not None
        with self._on_device():
            self._send_biases(bucket.size, slots, steering)
            for target, source in zip(device.inputs, host.inputs, strict=True):
                target.copy_(source, non_blocking=True)
            self._steps[bucket]()
            for target, source in zip(host.outputs, device.outputs, strict=True):
                target.copy_(source, non_blocking=True)
            if steering is not None:
                for target, source in zip(host.candidates, device.candidates, strict=True):
                    target.copy_(source, non_blocking=True)
            done = None if self._stream is None else self._stream.record_event()
        return partial(self._collect, host, slots, done, steering is not None)

    def force(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """Replace the last text token of each of `slots`."""
        self.check_force(slots, tokens)
        with self._on_device():
            for slot in slots:
                self._reset_now(slot)
            text_B = self._state["text"]
            assert isinstance(text_B, Tensor)
            text_B[self._index(slots)] = self._index(tokens)

    def _send_biases(self, rows: int, slots: slice | IntArray, steering: Steering | None) -> None:
        """Put the biases of these slots into the device's buffers, and nothing where there are none."""
        number = 0 if steering is None else steering.id_BN.shape[1]
        if self._biased:
            self._device_io.bias_BN.zero_()
        self._biased = number > 0
        if steering is None or not number:
            return
        host, device = self._host_io.first(rows), self._device_io.first(rows)
        host.bias_id_BN.numpy()[:, :number] = steering.id_BN[slots]
        host.bias_BN.numpy()[:, :number] = steering.bias_BN[slots]
        for target, source in zip(device.biases(number), host.biases(number), strict=True):
            target.copy_(source, non_blocking=True)

    def _collect(
        self, host: _Buffers, slots: slice | IntArray, done: torch.cuda.Event | None, steered: bool
    ) -> StepOutput:
        if done is not None:
            done.synchronize()
        token_B, logprob_B, pause_BH = (self._spread(part, slots) for part in host.outputs)
        output = StepOutput(token_B, logprob_B, pause_BH)
        if not steered:
            return output
        return replace(output, candidates=Candidates(*(self._spread(part, slots) for part in host.candidates)))

    def _spread(self, rows: Tensor, slots: slice | IntArray) -> npt.NDArray[Any]:
        """Copy the rows of a step to the places of their slots."""
        spread = np.zeros((self.slots, *rows.shape[1:]), rows.numpy().dtype)
        spread[slots] = rows.numpy()
        return spread

    def snapshot(self, slot: int) -> SlotState:
        """Copy one slot's state."""
        self.check_slots([slot])
        with self._on_device():
            self._reset_now(slot)
            return SlotState(read_slot(self._state, slot))

    def savepoint(self, slot: int, steps: int) -> Savepoint | SlotState:
        """Copy the tails and the columns that the steps overwrite, into memory that exists already."""
        self.check_slots([slot])
        with self._on_device():
            self._reset_now(slot)
            saved = self._savepoints.save(self._state, slot) if steps <= self._savepoints.steps else None
            # A copy of the whole slot on the device could fail for lack of memory, and end every session.
            return saved or SlotState(read_slot(self._state, slot, device="cpu"))

    def restore(self, slot: int, state: Savepoint | SlotState) -> None:
        """Put a snapshot of this runner, or of another runner of the same model, or a savepoint, into `slot`."""
        self.check_slots([slot])
        if isinstance(state, Savepoint) and state.slot != slot:
            raise ValueError(f"a savepoint of slot {state.slot} cannot be restored into slot {slot}: use a snapshot")
        self._pending_B[slot] = False
        with self._on_device():
            if isinstance(state, Savepoint):
                self._savepoints.restore(self._state, state)
            else:
                write_slots(self._state, self._index([slot]), state.state)

    def _reset_now(self, slot: int) -> None:
        if self._pending_B[slot]:
            write_slots(self._state, self._index([slot]), self._fresh)
            self._pending_B[slot] = False

    def _ring_formats(self, rings: RingFormat, kernels: bool) -> dict[str, RingFormat]:
        """The formats of both rings, with kernels where they have the shapes and work."""
        align = CUDA_ALIGNMENT if self.device.type == "cuda" else rings.align
        dtype = self.lm.text_linear.weight.dtype
        formats = {"codec": RingFormat(align=align), "lm": replace(rings, align=align, dtype=dtype)}
        for name, (config, dtype, step) in self._transformers().items():
            formats[name] = form = replace(formats[name], kernels=kernels and config is not None)
            if config is not None and kernels:
                works = kernels_fit(config, step) and kernels_work(config, form, self.device, dtype, step)
                formats[name] = replace(form, kernels=works)
        return formats

    def _transformers(self) -> dict[str, tuple[TransformerConfig | None, torch.dtype, int]]:
        """Configuration, type and positions per step of the two; Whisper's parts have separate layers."""
        codec, lm = self.config.codec, self.config.lm
        return {
            "codec": (None if codec.whisper else codec.transformer, torch.float32, codec.stride),
            "lm": (None if lm.whisper else lm.transformer, self.lm.text_linear.weight.dtype, 1),
        }

    def _attention(self, name: str) -> str:
        config, dtype, step = self._transformers()[name]
        if self._formats[name].kernels:
            return "kernels"
        return sdpa_name(config, self.device, dtype, step) if config is not None else "whisper"

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            yield

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Set the precision of float32 while torch chooses kernels. Its default is TF32 for convolutions only."""
        if self._stream is None:
            yield
            return
        convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
        before = convolutions.allow_tf32, products.allow_tf32
        convolutions.allow_tf32 = products.allow_tf32 = self._tf32
        try:
            with chosen_sdpa(self.device):
                yield
        finally:
            convolutions.allow_tf32, products.allow_tf32 = before

    def _index(self, slots: Sequence[int]) -> Tensor:
        return torch.tensor(list(slots), dtype=torch.int64, device=self.device)

    def _empty(self, batch: int) -> dict[str, State]:
        condition_1D = self.lm.condition(self.config.condition_values)
        return {
            **({} if condition_1D is None else {"condition": condition_1D.repeat(batch, 1)}),
            "codec": self.codec.encoder_state(batch, self._formats["codec"]),
            "lm": self.lm.init_state(batch, rings=self._formats["lm"]),
            "text": torch.full((batch,), PAD_ID, dtype=torch.int64, device=self.device),
        }

    def _prime(self, config: STTConfig, language: int = 0) -> State:
        """The state after position 0."""
        state = self._empty(1)
        if language:
            lm = state["lm"]
            assert isinstance(lm, dict)
            lm["language"] = self._index([language])
        if (condition_1D := self.lm.condition(config.condition_values)) is not None:
            state["condition"] = condition_1D
        hidden, state["lm"] = self.lm(*self.lm.initial_tokens(1), state["lm"], condition_1D)
        state["text"] = self.lm.text_logits(hidden)[:, -1].argmax(dim=-1)
        # The codec has no positions yet.
        return {
            **({"condition": state["condition"]} if "condition" in state else {}),
            "codec": read_slot(state["codec"], 0, steps=0),
            "lm": read_slot(state["lm"], 0, steps=1),
            "text": state["text"],
        }

    def _step(self, bucket: Bucket) -> None:
        """Run a step of a bucket's rows, from the input buffers to the output buffers."""
        io = self._device_io.first(bucket.size)
        state = read_slots(self._state, io.slot_B) if bucket.gathered else first_slots(self._state, io.slot_B)
        assert isinstance(state, dict)
        if self._resets:
            reset_rows(state, self._fresh, io.reset_B)
        text_B, condition_BD = state["text"], state.get("condition")
        assert isinstance(text_B, Tensor)
        assert condition_BD is None or isinstance(condition_BD, Tensor)
        if self.config.lm.whisper:
            text_B = torch.where(io.active_B, text_B, self.config.lm.text_initial_id)
        with self._precision():
            codes_BK1, codec_state = self.codec.encode(io.pcm_BS, state["codec"], self.lm.config.num_codebooks)
            hidden, lm_state = self.lm(text_B[:, None], codes_BK1, state["lm"], condition_BD)
            logits_BV = self.lm.text_logits(hidden)[:, 0].float()
            pause_logits = self.lm.pause_logits(hidden)[:, 0]
        logprob_BV = logits_BV.log_softmax(dim=-1)
        if self._steers:
            io.plain_B.copy_(logits_BV.argmax(dim=-1))
            io.plain_logprob_B.copy_(logprob_BV.gather(1, io.plain_B[:, None])[:, 0])
            logits_BV = logits_BV.scatter_add(1, io.bias_id_BN, io.bias_BN)
            io.candidate_BK.copy_(logits_BV.topk(CANDIDATES, dim=-1).indices)
            io.candidate_logprob_BK.copy_(logprob_BV.gather(1, io.candidate_BK))
        token_B = pick_token(logits_BV, self.sampling, self._generator)
        assert codec_state is not None
        assert lm_state is not None
        commit(state, {**state, "codec": codec_state, "lm": lm_state, "text": token_B}, io.active_B)
        if bucket.gathered:
            write_slots(self._state, io.slot_B, state)
        io.token_B.copy_(token_B)
        io.logprob_B.copy_(logprob_BV.gather(1, token_B[:, None])[:, 0])
        io.pause_BH.copy_(pause_logits.float().softmax(dim=-1)[..., 0])

    def _capture(self, stream: torch.cuda.Stream) -> dict[Bucket, bool]:
        """Replace the step of every bucket by a CUDA graph where that succeeds. No slot is active: no state changes."""
        pool, captured = torch.cuda.graph_pool_handle(), {}
        for bucket in self._buckets.all:
            kind = "gathered" if bucket.gathered else "in place"
            graph = capture(self._steps[bucket], stream, pool, f"a step of {bucket.size} rows {kind}")
            captured[bucket] = graph is not None
            self._steps[bucket] = graph or self._steps[bucket]
        return captured


@dataclass(frozen=True)
class _Buffers:
    """The inputs and outputs of a step, on the host or on the device: a row for each slot."""

    pcm_BS: Tensor
    active_B: Tensor
    slot_B: Tensor
    reset_B: Tensor
    bias_id_BN: Tensor
    bias_BN: Tensor
    token_B: Tensor
    logprob_B: Tensor
    pause_BH: Tensor
    candidate_BK: Tensor
    candidate_logprob_BK: Tensor
    plain_B: Tensor
    plain_logprob_B: Tensor

    @classmethod
    def empty(
        cls, slots: int, frame_samples: int, heads: int, *, device: torch.device | str = "cpu", pinned: bool = False
    ) -> _Buffers:
        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device, pin_memory=pinned)

        return cls(
            pcm_BS=zeros(slots, frame_samples),
            active_B=zeros(slots, dtype=torch.bool),
            slot_B=torch.arange(slots, out=zeros(slots, dtype=torch.int64)),
            reset_B=zeros(slots, dtype=torch.bool),
            bias_id_BN=zeros(slots, MAX_BIASED, dtype=torch.int64),
            bias_BN=zeros(slots, MAX_BIASED),
            token_B=zeros(slots, dtype=torch.int64),
            logprob_B=zeros(slots),
            pause_BH=zeros(slots, heads),
            candidate_BK=zeros(slots, CANDIDATES, dtype=torch.int64),
            candidate_logprob_BK=zeros(slots, CANDIDATES),
            plain_B=zeros(slots, dtype=torch.int64),
            plain_logprob_B=zeros(slots),
        )

    def first(self, rows: int) -> _Buffers:
        """Views of the first rows."""
        return _Buffers(*(getattr(self, field.name)[:rows] for field in fields(self)))

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.pcm_BS, self.active_B, self.slot_B, self.reset_B

    @property
    def outputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.token_B, self.logprob_B, self.pause_BH

    @property
    def candidates(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.candidate_BK, self.candidate_logprob_BK, self.plain_B, self.plain_logprob_B

    def biases(self, number: int) -> tuple[Tensor, Tensor]:
        return self.bias_id_BN[:, :number], self.bias_BN[:, :number]
