"""The published `moshi` package under the same load."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from benchmarks.common import moshi_lm_arguments
from torch import Tensor

from slipstream.arrays import BoolArray, FloatArray
from slipstream.checkpoints.mimi import dump_codec
from slipstream.model.config import STTConfig


class Moshi:
    """The published package's codec and LM over `streams` streams, called as its own server calls them."""

    def __init__(self, config: STTConfig, device: torch.device, dtype: torch.dtype, streams: int) -> None:
        from moshi.models import LMGen, loaders

        books = config.lm.num_codebooks
        self.codec = loaders.get_mimi(None, dump_codec(config.codec), device=device, num_codebooks=books)
        lm = loaders.get_moshi_lm(None, moshi_lm_arguments(config), device="meta", dtype=dtype).to_empty(device=device)
        with torch.no_grad():
            for tensor in (*self.codec.parameters(), *self.codec.buffers(), *lm.parameters(), *lm.buffers()):
                tensor.requires_grad_(False)
                if tensor.is_floating_point():
                    tensor.normal_(0, 0.02)
        self.generator = LMGen(lm, use_sampling=False, support_out_of_sync=True)
        self.device = device
        self.slots = streams
        # Its state is in its modules while these contexts are open.
        self._open = ExitStack()
        self._open.enter_context(self.codec.streaming(streams))
        self._open.enter_context(self.generator.streaming(streams))
        self._active_B = np.ones(streams, np.bool_)

    def reset(self, slots: Sequence[int]) -> None:
        mask_B = torch.zeros(self.slots, dtype=torch.bool)
        mask_B[list(slots)] = True
        for streaming in (self.codec, self.generator):
            streaming.reset_streaming(mask_B.to(self.device))

    def step(self, pcm_BS: FloatArray, active_B: BoolArray) -> object:
        with torch.no_grad():
            if (active_B != self._active_B).any():
                self._active_B = active_B.copy()
                for streaming in (self.codec, self.generator):
                    streaming.set_exec_mask(torch.from_numpy(active_B).to(self.device))
            codes = self.codec.encode(torch.from_numpy(pcm_BS).to(self.device)[:, None])
            return self.generator.step(codes).cpu().numpy()

    def fill(self) -> None:
        """Put every stream past its context, by the tensors in which its attention counts positions."""
        pcm_BS = np.zeros((self.slots, self.codec.frame_size), np.float32)
        for _ in range(3):
            self.step(pcm_BS, np.ones(self.slots, np.bool_))
        for module in (*self.codec.modules(), *self.generator.lm_model.modules()):
            state = getattr(module, "_streaming_state", None)
            cache = getattr(state, "kv_cache", None)
            for owner, name in ((state, "offset"), (state, "offsets"), (cache, "end_offset")):
                position = getattr(owner, name, None)
                if isinstance(position, Tensor):
                    position.fill_(10_000)
