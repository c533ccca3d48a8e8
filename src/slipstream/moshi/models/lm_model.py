"""`LMModel`: the language model under Kyutai's calls. Shapes: B rows, K streams, T frames, V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slipstream.checkpoints.kyutai import lm_table
from slipstream.checkpoints.kyutai_tts import KyutaiSpeechLM
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.numerics import NO_TOKEN, UNGENERATED
from slipstream.moshi.conditioners import ConditionFuser, ConditionProvider, ConditionTensors
from slipstream.nn.build import to_tensor
from slipstream.nn.layers import Transformer
from slipstream.nn.lm import LM
from slipstream.schema import parse


@dataclass
class LMOutput:
    """Scores of a training pass, aligned with the codes that they predict; B rows, T frames.

    `logits` is `[B, dep_q, T, card]` and `mask` `[B, dep_q, T]`; a speech-to-text model predicts no audio, its dep_q is
    0. `text_logits` is `[B, 1, T, text_card]`; `text_mask`, `[B, 1, T]`, is true where the codes hold a text token.
    Scores of a stream with a delay are NaN, and masked, in the last frames.
    """

    logits: Tensor
    mask: Tensor
    text_logits: Tensor
    text_mask: Tensor


class Embedding:
    """The embedding of one stream, callable as Kyutai's modules are: tokens `[B, T]` to vectors `[B, T, dim]`."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens.clamp(min=0), self.weight) * (tokens != NO_TOKEN)[..., None]


# What Kyutai's constructor takes for keys that are left out, where `config.json` has another default.
_DEFAULTS = {
    "n_q": 8,
    "dep_q": 8,
    "card": 1024,
    "text_card": 32_000,
    "dim": 128,
    "num_heads": 8,
    "norm": "layer_norm",
    "gating": "none",
    "positional_embedding": "sin",
}


class LMModel(nn.Module):
    """An LM: one text stream and `n_q` audio streams in; text, and the first `dep_q` audio streams, out.

    Args:
        lm: The model. Without one, an LM with random weights is made from `keys`.
        condition_values: Value by conditioner name, used where generation is given no conditions.
        device, dtype: Of the random weights.
        keys: Keys of the published `config.json`, with the defaults of Kyutai's constructor.
    """

    audio_offset = 1
    """Row of the first audio stream, after the text."""

    def __init__(
        self,
        lm: LM | None = None,
        condition_values: Mapping[str, float | str] | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **keys: Any,
    ) -> None:
        super().__init__()
        if lm is None:
            lm = LM(parse(KyutaiSpeechLM, _DEFAULTS | keys, "the keys of the model").lm()).to(device, dtype)
        elif keys:
            raise TypeError(f"{', '.join(keys)}: the model is given, and has its configuration")
        self.lm = lm
        self.condition_values = dict(condition_values or {})
        self.dep_q = lm.config.depth.num_codebooks if lm.config.depth else 0
        """Audio streams that the model writes. It can be set to fewer, so that generation is faster."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the weights of a checkpoint under Kyutai's names, or under those of `state_dict()`.

        Args:
            state_dict: Tensors by name.
            strict: Refuse missing and unknown names.
            assign: Keep these tensors instead of copying them.

        Returns:
            The names that are missing and unknown, as PyTorch's method does.
        """
        if not any(name.startswith("lm.") for name in state_dict):
            arrays = {name: tensor.detach().cpu().float().numpy() for name, tensor in state_dict.items()}
            canonical = lm_table(self.lm.config).read(arrays, "the state dict")
            state_dict = {f"lm.{name}": to_tensor(array) for name, array in canonical.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    @property
    def n_q(self) -> int:
        """Audio streams that the model reads."""
        return self.lm.config.num_codebooks

    @property
    def num_audio_codebooks(self) -> int:
        """Audio streams that the model reads, as `n_q`."""
        return self.n_q

    @property
    def num_codebooks(self) -> int:
        """All streams: the text and the audio."""
        return self.n_q + self.audio_offset

    @property
    def delays(self) -> list[int]:
        """Steps by which each stream lags; none in a speech-to-text model, which has learnt the delay of the text."""
        return list(self.lm.config.stream_delays)

    @property
    def card(self) -> int:
        """Size of the vocabulary of an audio stream."""
        return self.lm.config.audio_vocab

    @property
    def text_card(self) -> int:
        """Size of the vocabulary of the text."""
        return self.lm.config.text_vocab

    @property
    def dim(self) -> int:
        """Width of the Transformer."""
        return self.lm.config.transformer.dim

    @property
    def context(self) -> int:
        """Steps that its attention sees."""
        return self.lm.config.transformer.context

    @property
    def initial_token_id(self) -> int:
        """The audio token before the first frame."""
        return self.lm.config.audio_initial_id

    @property
    def text_initial_token_id(self) -> int:
        """The text token before the first frame."""
        return self.lm.config.text_initial_id

    @property
    def text_padding_token_id(self) -> int:
        """The text token for no text."""
        return PAD_ID

    @property
    def end_of_text_padding_id(self) -> int:
        """The text token that announces a word."""
        return WORD_ID

    @property
    def zero_token_id(self) -> int:
        """The input token without content, whose embedding is zero."""
        return NO_TOKEN

    @property
    def ungenerated_token_id(self) -> int:
        """The token that `LMGen.step` returns for a stream that does not advance."""
        return UNGENERATED

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm.text_linear.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.lm.text_linear.weight.dtype

    @property
    def condition_provider(self) -> ConditionProvider | None:
        """Turns attributes into conditions; None for a model without conditioners."""
        return ConditionProvider(self.lm.conditioners) if self.lm.conditioners else None

    @property
    def fuser(self) -> ConditionFuser | None:
        """Joins conditions for the inputs and for the cross-attention; None for a model without conditioners."""
        return ConditionFuser(self.lm) if self.lm.conditioners else None

    @property
    def extra_heads(self) -> list[Callable[[Tensor], Tensor]]:
        """The pause heads, each from the Transformer's output `[B, T, dim]` to scores `[B, T, classes]`."""
        if self.lm.pause_heads is None:
            return []
        return [partial(F.linear, weight=weight) for weight in self.lm.pause_heads.weight]

    @property
    def emb(self) -> list[Embedding]:
        """The embedding of each audio stream."""
        return [Embedding(weight) for weight in self.lm.audio_emb.weight]

    @property
    def text_emb(self) -> nn.Embedding:
        """The embedding of the text stream."""
        return self.lm.text_emb

    @property
    def transformer(self) -> nn.Module:
        """The Transformer."""
        return self.lm.transformer

    @property
    def out_norm(self) -> nn.Module:
        """The norm of the Transformer's output."""
        return self.lm.out_norm

    @property
    def text_linear(self) -> nn.Linear:
        """The projection from the Transformer's output to text scores."""
        return self.lm.text_linear

    def forward(self, codes: Tensor, condition_tensors: ConditionTensors | None = None) -> LMOutput:
        """Score whole sequences, for training.

        Args:
            codes: All streams, `[B, num_codebooks, T]`: the text, then the audio. `zero_token_id` marks no token.
            condition_tensors: The conditions of each row. Without any, those of the checkpoint's configuration.

        Returns:
            The scores of each code given those before it: nothing needs to be shifted.

        Raises:
            ValueError: `codes` has another number of streams.
        """
        B, K, _ = codes.shape
        if self.num_codebooks != K:
            raise ValueError(f"codes of shape {list(codes.shape)}: expected [B, {self.num_codebooks}, T]")
        text, audio = self.lm.initial_tokens(B)
        initial = torch.cat([text[:, None], audio], dim=1)
        delayed = torch.cat([initial, delay_streams(codes, self.delays, initial)], dim=2)
        condition_BD, source_BSD = sum_and_cross(self, condition_tensors or {})
        sum_condition = None if condition_BD is None else condition_BD[:, None]
        hidden, text_logits = self.forward_text(delayed[:, :, :-1], sum_condition, source_BSD)
        written = delayed[:, :, 1:]
        text_mask = codes[:, :1] != self.zero_token_id
        text_logits, aligned = undelay_streams(text_logits, self.delays[:1])
        if self.lm.depth is None:
            logits = text_logits.new_zeros(B, 0, codes.shape[2], self.card)
            return LMOutput(logits, text_mask[:, :0], text_logits, text_mask & aligned)
        logits = self.lm.depth_logits(
            hidden, written[:, 0], written[:, self.audio_offset : self.audio_offset + self.dep_q]
        )
        streams = slice(self.audio_offset, self.audio_offset + self.dep_q)
        logits, mask = undelay_streams(logits, self.delays[streams])
        return LMOutput(logits, mask & (codes[:, streams] != self.zero_token_id), text_logits, text_mask & aligned)

    def forward_text(
        self, sequence: Tensor, sum_condition: Tensor | None = None, cross_attention_src: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run whole sequences.

        Args:
            sequence: All streams, `[B, num_codebooks, T]`: the text, then the audio.
            sum_condition: A vector that is added to every input, `[B, 1, dim]`.
            cross_attention_src: A sequence that every layer attends to, `[B, S, dim]`.

        Returns:
            The Transformer's output `[B, T, dim]`, and text scores `[B, 1, T, text_card]`.
        """
        condition_BD = None if sum_condition is None else sum_condition[:, 0]
        transformer = cast(Transformer, self.lm.transformer)
        cross = None if cross_attention_src is None else transformer.cross_keys(cross_attention_src)
        hidden, _ = self.lm(sequence[:, 0], sequence[:, self.audio_offset :], None, condition_BD, cross)
        return hidden, self.lm.text_logits(hidden)[:, None]


def delay_streams(codes_BKT: Tensor, delays: list[int], initial_BK1: Tensor) -> Tensor:
    """Shift each stream by its delay: the initial tokens come first, the last tokens are cut."""
    T = codes_BKT.shape[2]
    parts = [
        torch.cat([initial_BK1[:, k].expand(-1, min(delay, T)), codes_BKT[:, k, : max(T - delay, 0)]], dim=1)
        for k, delay in enumerate(delays)
    ]
    return torch.stack(parts, dim=1)


def undelay_streams(logits_BKTV: Tensor, delays: list[int]) -> tuple[Tensor, Tensor]:
    """Shift the scores of each stream back. What is missing at the end is NaN, and false in the mask `[B, K, T]`."""
    T = logits_BKTV.shape[2]
    mask = torch.ones(logits_BKTV.shape[:3], dtype=torch.bool, device=logits_BKTV.device)
    parts = []
    for k, delay in enumerate(delays):
        mask[:, k, max(T - delay, 0) :] = False
        parts.append(F.pad(logits_BKTV[:, k, delay:], (0, 0, 0, min(delay, T)), value=math.nan))
    return torch.stack(parts, dim=1), mask


def sum_and_cross(lm_model: LMModel, conditions: ConditionTensors) -> tuple[Tensor | None, Tensor | None]:
    """What conditions add to every input, `[B, D]` or `[1, D]`, and what the layers attend to, `[B, S, D]`.

    Without any given, the sum is that of the checkpoint's config.
    """
    fuser = lm_model.fuser
    if not conditions or fuser is None:
        if conditions:
            raise ValueError(f"conditions {', '.join(sorted(conditions))}: this model has none")
        return lm_model.lm.condition(lm_model.condition_values), None
    known = set(lm_model.lm.conditioners)
    if conditions.keys() != known:
        expected = ", ".join(sorted(known)) or "none"
        raise ValueError(f"conditions {', '.join(sorted(conditions))}: this model has {expected}")
    summed = fuser.get_sum(conditions)
    return None if summed is None else summed[:, 0], fuser.get_cross(conditions)
