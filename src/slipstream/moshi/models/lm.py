"""`LMModel` and `LMGen`: the language model and its generation loop under Kyutai's calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slipstream.backends.torch.layers import unpack
from slipstream.backends.torch.lm import LM
from slipstream.backends.torch.sampling import pick_token
from slipstream.backends.torch.state import State
from slipstream.model.config import PAD_ID, WORD_ID, SamplingConfig
from slipstream.model.numerics import NO_TOKEN
from slipstream.moshi.conditioners import ConditionProvider, ConditionTensors
from slipstream.moshi.streaming import Streaming

UNGENERATED = -2

TextHook = Callable[[Tensor], object]


@dataclass
class LMOutput:
    """Scores of a training pass, aligned with the codes that they predict; B rows, T frames.

    A speech-to-text model predicts no audio: `logits` is `[B, 0, T, card]` and `mask` `[B, 0, T]`. `text_logits` is
    `[B, 1, T, text_card]`; `text_mask`, `[B, 1, T]`, is true where the codes hold a text token.
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


class LMModel(nn.Module):
    """The LM of a speech-to-text model: one text stream and `n_q` audio streams in, text out.

    `condition_values`: value by conditioner name, used where generation is given no conditions.
    """

    dep_q = 0
    """Audio streams that the model writes: none."""

    audio_offset = 1
    """Row of the first audio stream, after the text."""

    def __init__(self, lm: LM, condition_values: Mapping[str, float | str] | None = None) -> None:
        super().__init__()
        self.lm = lm
        self.condition_values = dict(condition_values or {})

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
        """Steps by which each stream lags: none, the model has learnt the delay of the text."""
        return [0] * self.num_codebooks

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
        B, K, T = codes.shape
        if self.num_codebooks != K:
            raise ValueError(f"codes of shape {list(codes.shape)}: expected [B, {self.num_codebooks}, T]")
        text, audio = self.lm.initial_tokens(B)
        sequence = torch.cat([torch.cat([text[:, None], audio], dim=1), codes[:, :, :-1]], dim=2)
        condition_BD = _sum_conditions(self, condition_tensors or {})
        _, text_logits = self.forward_text(sequence, None if condition_BD is None else condition_BD[:, None])
        audio_logits = text_logits.new_zeros(B, 0, T, self.card)
        text_mask = codes[:, :1] != self.zero_token_id
        return LMOutput(audio_logits, text_mask[:, :0], text_logits, text_mask)

    def forward_text(self, sequence: Tensor, sum_condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run whole sequences.

        Args:
            sequence: All streams, `[B, num_codebooks, T]`: the text, then the audio.
            sum_condition: A vector that is added to every input, `[B, 1, dim]`.

        Returns:
            The Transformer's output `[B, T, dim]`, and text scores `[B, 1, T, text_card]`.
        """
        condition_BD = None if sum_condition is None else sum_condition[:, 0]
        hidden, _ = self.lm(sequence[:, 0], sequence[:, self.audio_offset :], condition_BD=condition_BD)
        return hidden, self.lm.text_logits(hidden)[:, None]


class LMGen(Streaming):
    """Writes text from audio tokens, one step at a time, inside `streaming(batch_size)`.

    The first step of a stream processes the initial tokens instead of its input; to process the first frame, pass it
    twice. A stream is greedy without `use_sampling` or at `temp_text=0`.

    Args:
        on_text_logits_hook: Called with the scores `[B, 1, 1, V]` of each step, which it can change in place.
        on_text_hook: Called with the tokens `[B]` of each step, which it can change in place.
        check: Raise `ValueError` for input tokens that no stream can have.
        temp, top_k, support_out_of_sync: For generated audio and streams with delays: no effect in a speech-to-text
            model.
    """

    def __init__(
        self,
        lm_model: LMModel,
        use_sampling: bool = True,
        temp: float = 0.8,
        temp_text: float = 0.7,
        top_k: int = 250,
        top_k_text: int = 25,
        cfg_coef: float = 1.0,
        check: bool = False,
        condition_tensors: ConditionTensors | None = None,
        on_text_hook: TextHook | None = None,
        on_text_logits_hook: TextHook | None = None,
        on_audio_hook: TextHook | None = None,
        support_out_of_sync: bool = False,
        cfg_is_masked_until: list[int] | None = None,
        cfg_is_no_text: bool = False,
    ) -> None:
        if lm_model.training:
            raise ValueError("the model is in training mode: call its eval() before generation")
        if cfg_coef != 1.0 or cfg_is_masked_until is not None or cfg_is_no_text:
            raise ValueError(
                "classifier-free guidance (cfg_coef, cfg_is_masked_until, cfg_is_no_text) is for models that write "
                "audio: leave cfg_coef at 1 for speech to text"
            )
        if on_audio_hook is not None:
            raise ValueError("on_audio_hook would never be called: a speech-to-text model writes no audio")
        self.lm_model = lm_model
        self.use_sampling = use_sampling
        self.temp = temp
        self.temp_text = temp_text
        self.top_k = top_k
        self.top_k_text = top_k_text
        self.cfg_coef = cfg_coef
        self.check = check
        self.on_text_hook = on_text_hook
        self.on_text_logits_hook = on_text_logits_hook
        self.support_out_of_sync = support_out_of_sync
        self.max_delay = max(lm_model.delays)
        with torch.no_grad():
            self._condition = _sum_conditions(lm_model, condition_tensors or {})

    def step(self, input_tokens: Tensor, depformer_replace_tokens: Tensor | None = None) -> Tensor:
        """Process one frame.

        Args:
            input_tokens: Audio tokens `[B, n_q, 1]`; further rows are ignored.
            depformer_replace_tokens: None: a speech-to-text model writes no audio.

        Returns:
            The text token `[B, 1, 1]`; `ungenerated_token_id` for a stream that does not advance.

        Raises:
            ValueError: The shape is another one, or an argument is for generated audio.

        Example:
            >>> with lm_gen.streaming(1):
            ...     text_token = lm_gen.step(codes[:, :, :1])
        """
        text, _ = self._step(input_tokens, depformer_replace_tokens)
        return text

    def step_with_extra_heads(
        self, input_tokens: Tensor, depformer_replace_tokens: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Process one frame, as `step` does.

        Args:
            input_tokens: As for `step`.
            depformer_replace_tokens: As for `step`.

        Returns:
            The text token, and the probabilities `[B, 1, classes]` of each pause head.

        Raises:
            ValueError: As for `step`.
        """
        text, hidden = self._step(input_tokens, depformer_replace_tokens)
        return text, list(self.lm_model.lm.pause_logits(hidden).softmax(dim=-1).unbind(dim=2))

    @torch.no_grad()
    def _step(self, input_tokens: Tensor, depformer_replace_tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        streams = self._started()
        if depformer_replace_tokens is not None:
            raise ValueError("depformer_replace_tokens: a speech-to-text model writes no audio to replace")
        codes_BK1 = self._heard(input_tokens)
        text_B = streams.state["text"]
        assert isinstance(text_B, Tensor)
        if self.check:
            self._check(text_B, codes_BK1)
        lm = self.lm_model.lm
        hidden, state = lm(text_B[:, None], codes_BK1, streams.state["lm"], self._condition)
        logits_B11V = lm.text_logits(hidden)[:, None]
        if self.on_text_logits_hook is not None:
            self.on_text_logits_hook(logits_B11V)
        sampling = SamplingConfig(
            temperature=float(self.temp_text) if self.use_sampling else 0.0, top_k=self.top_k_text
        )
        token_B = pick_token(logits_B11V[:, 0, 0].float(), sampling)
        if self.on_text_hook is not None:
            self.on_text_hook(token_B)
        streams.commit({"lm": state, "text": token_B})
        return torch.where(streams.exec_mask, token_B, UNGENERATED)[:, None, None], hidden

    def _heard(self, input_tokens: Tensor) -> Tensor:
        """The audio tokens that the model sees: initial ones in a stream's first step, or where it does not advance."""
        streams = self._started()
        codes_BK1 = input_tokens[:, : self.lm_model.n_q]
        expected = (streams.batch_size, self.lm_model.n_q, 1)
        if codes_BK1.shape != expected:
            raise ValueError(
                f"tokens of shape {list(input_tokens.shape)}: expected {list(expected)}, the codes of one frame for "
                "each stream"
            )
        _, position_B = unpack(streams.state["lm"])
        unheard_B = (position_B == 0) | ~streams.exec_mask
        return torch.where(unheard_B[:, None, None], self.lm_model.initial_token_id, codes_BK1)

    def _check(self, text_B: Tensor, codes_BK1: Tensor) -> None:
        for name, tokens, last in (
            ("text", text_B, self.lm_model.text_initial_token_id),
            ("audio", codes_BK1, self.lm_model.initial_token_id),
        ):
            if (tokens < NO_TOKEN).any() or (tokens > last).any():
                raise ValueError(
                    f"{name} tokens from {int(tokens.min())} to {int(tokens.max())}: expected {NO_TOKEN} to {last}"
                )

    def _init_state(self, batch_size: int) -> dict[str, State]:
        text, _ = self.lm_model.lm.initial_tokens(batch_size)
        return {"lm": self.lm_model.lm.init_state(batch_size), "text": text[:, 0]}

    @property
    def _device(self) -> torch.device:
        return self.lm_model.device


def _sum_conditions(lm_model: LMModel, conditions: ConditionTensors) -> Tensor | None:
    """What conditions add to every input, `[B, D]` or `[1, D]`; without any given, those of the checkpoint's config."""
    if not conditions:
        return lm_model.lm.condition(lm_model.condition_values)
    known = set(lm_model.lm.conditioners)
    if conditions.keys() != known:
        expected = ", ".join(sorted(known)) or "none"
        raise ValueError(f"conditions {', '.join(sorted(conditions))}: this model has {expected}")
    return torch.stack([condition.condition[:, 0] for condition in conditions.values()]).sum(dim=0)
