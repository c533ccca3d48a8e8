"""What the streams of `TTSModel.generate` read in each step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slipstream.model.script import Entry

if TYPE_CHECKING:
    from slipstream.moshi.models.tts import TTSModel


class Reading:
    """The hooks of a generation: what each stream reads next, and which audio tokens are given."""

    def __init__(self, model: TTSModel, all_entries: Sequence[Sequence[Entry]], prefixes: list[Tensor] | None) -> None:
        self.model = model
        self.states = [model.machine.new_state(entries) for entries in all_entries]
        self.logged: list[list[tuple[int, int]]] = [[] for _ in all_entries]
        self.offset = 0
        prefixes = prefixes if prefixes is not None else []
        if prefixes and len(prefixes) != len(all_entries):
            raise ValueError(f"{len(prefixes)} prefixes for {len(all_entries)} scripts: expected one for each")
        for prefix in prefixes:
            if len(prefix) != model.lm.num_codebooks:
                raise ValueError(f"a prefix of {len(prefix)} streams: expected {model.lm.num_codebooks}")
        self.prefix_lengths = [prefix.shape[-1] for prefix in prefixes]
        self._texts = [deque(prefix[0].tolist()) for prefix in prefixes] or [deque[int]() for _ in all_entries]
        self._audio = [deque(self._delayed(prefix[1:]).t()) for prefix in prefixes]

    @property
    def done(self) -> bool:
        """Whether all scripts are read, and their audio is generated."""
        ends = [state.end_step for state in self.states]
        if None in ends:
            return False
        last = max(end for end in ends if end is not None)
        return self.offset >= last + self.model.delay_steps + self.model.final_padding

    def on_text_logits(self, logits: Tensor) -> None:
        if self.model.padding_bonus:
            logits[..., self.model.machine.token_ids.pad] += self.model.padding_bonus

    def on_text(self, tokens_B: Tensor) -> None:
        read = []
        for token, state, logged, text in zip(tokens_B.tolist(), self.states, self.logged, self._texts, strict=True):
            following = text.popleft() if text else self.model.machine.process(self.offset, state, token)[0]
            read.append(following)
            logged.append((token, following))
        tokens_B[:] = torch.tensor(read, device=tokens_B.device)

    def on_audio(self, tokens_BK: Tensor) -> None:
        model = self.model
        for k, delay in enumerate(model.lm.delays[1 : tokens_BK.shape[1] + 1]):
            if self.offset < delay + model.delay_steps:
                tokens_BK[:, k] = model.machine.token_ids.zero
        for row, prefix in enumerate(self._audio):
            if prefix:
                given_K = prefix.popleft()[: tokens_BK.shape[1]]
                free_K = given_K == model.machine.token_ids.ungenerated
                tokens_BK[row] = torch.where(free_K, tokens_BK[row], given_K)

    def _delayed(self, codes_KT: Tensor) -> Tensor:
        model = self.model
        delays = [delay + model.delay_steps for delay in model.lm.delays[1:]]
        K, T = codes_KT.shape
        out = codes_KT.new_full((K, T + max(delays)), model.machine.token_ids.ungenerated)
        for k, delay in enumerate(delays):
            out[k, delay : delay + T] = codes_KT[k]
        return out.to(model.lm.device)
