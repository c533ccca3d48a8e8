"""TorchRunner: the Runner of the PyTorch backend, on CPU or CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.config import PAD_ID, SamplingConfig, STTConfig
from slipstream.slots import check_slots, heard
from slipstream.torch_model.lm import LM
from slipstream.torch_model.mimi import Mimi
from slipstream.torch_model.sampling import pick_token
from slipstream.torch_model.state import State, commit, read_slot, write_slots
from slipstream.types import BoolArray, FloatArray, StepOutput


@dataclass(frozen=True)
class SlotState:
    """One slot of a `TorchRunner`, copied out: a batch of one."""

    state: State


class TorchRunner:
    """A codec and an LM over `slots` streams, in fixed buffers.

    One step encodes a frame, feeds its tokens and each stream's last text token to the LM, and picks the next text
    token. On CUDA the whole step is one captured graph. Position 0 (the initial tokens) is run once, here, and copied
    into a slot at reset, so a stream's first frame is heard like any other.
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
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots={slots}: expected at least 1")
        self.config = config
        self.codec = codec.eval().requires_grad_(False)
        self.lm = lm.eval().requires_grad_(False)
        self.sampling = sampling if sampling is not None else config.sampling
        self.slots = slots
        self.frame_samples = config.codec.frame_samples
        self.frame_rate = config.codec.frame_rate
        self.delay_frames = config.delay_frames
        self.device = lm.text_linear.weight.device
        self._generator = None
        if seed is not None:
            self._generator = torch.Generator(self.device).manual_seed(seed)
        with torch.inference_mode():
            self._condition = lm.condition(config.condition_values)
            self._fresh = self._prime()
            self._state = self._empty(slots)
            write_slots(self._state, range(slots), self._fresh)
        self._pcm_BS = torch.zeros(slots, self.frame_samples, device=self.device)
        self._active_B = torch.zeros(slots, dtype=torch.bool, device=self.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output = self._capture() if self.device.type == "cuda" else None

    def reset(self, slots: Sequence[int]) -> None:
        """Make each of `slots` a fresh stream."""
        check_slots(slots, self.slots)
        with torch.inference_mode():
            write_slots(self._state, slots, self._fresh)

    def step(self, pcm_BS: FloatArray, active_B: BoolArray) -> StepOutput:
        """Advance the active slots by one frame of samples `[B, frame_samples]`.

        Raises `AudioError` when an active slot's samples are not finite: they would stay in its state for ever.
        """
        heard_BS = heard(pcm_BS, active_B, self.slots, self.frame_samples)
        with torch.inference_mode():
            self._pcm_BS.copy_(torch.from_numpy(heard_BS))
            self._active_B.copy_(torch.from_numpy(active_B))
            if self._graph is None:
                token, logprob, pause = self._step()
            else:
                self._graph.replay()
                assert self._output is not None
                token, logprob, pause = self._output
            return StepOutput(token.cpu().numpy(), logprob.cpu().numpy(), pause.cpu().numpy())

    def snapshot(self, slot: int) -> SlotState:
        """Copy one slot's state."""
        check_slots([slot], self.slots)
        return SlotState(read_slot(self._state, slot))

    def restore(self, slot: int, state: SlotState) -> None:
        """Put a snapshot of this runner, or of another of the same model, into `slot`."""
        check_slots([slot], self.slots)
        with torch.inference_mode():
            write_slots(self._state, [slot], state.state)

    def _empty(self, batch: int) -> dict[str, State]:
        return {
            "codec": self.codec.encoder_state(batch),
            "lm": self.lm.init_state(batch),
            "text": torch.full((batch,), PAD_ID, dtype=torch.int64, device=self.device),
        }

    def _prime(self) -> State:
        state = self._empty(1)
        hidden, state["lm"] = self.lm(*self.lm.initial_tokens(1), state["lm"], self._condition)
        state["text"] = self.lm.text_logits(hidden)[:, -1].argmax(dim=-1)
        return read_slot(state, 0, columns=1)

    def _step(self) -> tuple[Tensor, Tensor, Tensor]:
        """One step from the input buffers to token `[B]`, log-probability `[B]` and pause probability `[B, H]`."""
        state = self._state
        text_B = state["text"]
        assert isinstance(text_B, Tensor)
        codes_BK1, codec_state = self.codec.encode(self._pcm_BS, state["codec"], self.lm.config.num_codebooks)
        hidden, lm_state = self.lm(text_B[:, None], codes_BK1, state["lm"], self._condition)
        logits_BV = self.lm.text_logits(hidden)[:, 0].float()
        token_B = pick_token(logits_BV, self.sampling, self._generator)
        assert codec_state is not None
        assert lm_state is not None
        update: State = {"codec": codec_state, "lm": lm_state, "text": token_B}
        commit(state, update, self._active_B)
        logprob_B = logits_BV.log_softmax(dim=-1).gather(1, token_B[:, None])[:, 0]
        pause_BH = self.lm.pause_logits(hidden)[:, 0].float().softmax(dim=-1)[..., 0]
        return token_B, logprob_B, pause_BH

    def _capture(self) -> tuple[Tensor, Tensor, Tensor]:
        """Record the step as a CUDA graph over the fixed buffers; no slot is active, so no state changes."""
        if self._generator is not None:
            raise ValueError("a seed cannot be set on CUDA: use torch.manual_seed before the runner is made")
        with torch.inference_mode():
            side = torch.cuda.Stream(self.device)
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                for _ in range(3):
                    self._step()
            torch.cuda.current_stream(self.device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = self._step()
        self._graph = graph
        return output
