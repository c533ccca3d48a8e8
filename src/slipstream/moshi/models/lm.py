"""`LMGen`: the generation loop of a language model under Kyutai's calls, and its `LMModel`."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from slipstream.model.config import SamplingConfig
from slipstream.model.numerics import NO_TOKEN
from slipstream.moshi.conditioners import ConditionTensors
from slipstream.moshi.models.lm_model import LMModel, LMOutput, sum_and_cross
from slipstream.moshi.streaming import Streaming
from slipstream.nn.generation import Conditions, Generator, Hook, Hooks, Step
from slipstream.nn.layers import Transformer
from slipstream.nn.state import State

__all__ = ["LMGen", "LMModel", "LMOutput"]


class LMGen(Streaming):
    """Generates text, and audio with a model that writes it, one step at a time, inside `streaming(batch_size)`.

    The first step of a stream processes the initial tokens instead of its input; to process the first frame, pass it
    twice. A stream is greedy without `use_sampling` or at a temperature of 0.

    Args:
        temp, top_k: How audio tokens are picked.
        temp_text, top_k_text: How text tokens are picked.
        cfg_coef: Factor of classifier-free guidance, 1 for none. `condition_tensors` then has twice as many rows: the
            conditions, then the same without them.
        check: Raise `ValueError` for input tokens that no stream can have.
        on_text_logits_hook: Called with the scores `[B, 1, 1, V]` of each step, which it can change in place.
        on_text_hook: Called with the text tokens `[B]` of each step, which it can change in place.
        on_audio_hook: Called with the audio tokens `[B, dep_q]` of each step, which it can change in place.
        support_out_of_sync: Return tokens from the first step on, for streams that are not all as old.
        cfg_is_masked_until: For each stream, the step up to which guidance hides its tokens from the other half.
        cfg_is_no_text: With guidance, hide the text from the other half.
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
        on_text_hook: Hook | None = None,
        on_text_logits_hook: Hook | None = None,
        on_audio_hook: Hook | None = None,
        support_out_of_sync: bool = False,
        cfg_is_masked_until: list[int] | None = None,
        cfg_is_no_text: bool = False,
    ) -> None:
        if lm_model.training:
            raise ValueError("the model is in training mode: call its eval() before generation")
        if not lm_model.dep_q:
            _refuse_audio(cfg_coef != 1.0 or cfg_is_masked_until is not None or cfg_is_no_text, on_audio_hook)
        self.lm_model = lm_model
        self.use_sampling = use_sampling
        self.temp = temp
        self.temp_text = temp_text
        self.top_k = top_k
        self.top_k_text = top_k_text
        self.cfg_coef = cfg_coef
        self.check = check
        self.condition_tensors = condition_tensors
        self.on_text_hook = on_text_hook
        self.on_text_logits_hook = on_text_logits_hook
        self.on_audio_hook = on_audio_hook
        self.support_out_of_sync = support_out_of_sync
        self.cfg_is_masked_until = cfg_is_masked_until
        self.cfg_is_no_text = cfg_is_no_text
        self.max_delay = max(lm_model.delays)
        self._codebooks = lm_model.dep_q
        self._steps = 0
        with torch.no_grad():
            self._conditions = self._fused(condition_tensors or {})

    def step(self, input_tokens: Tensor, depformer_replace_tokens: Tensor | None = None) -> Tensor | None:
        """Process one frame.

        Args:
            input_tokens: Audio tokens of the streams that the model reads and does not write, `[B, n_q - dep_q, 1]`;
                further rows are ignored.
            depformer_replace_tokens: Audio tokens `[B, dep_q, 1]` to use instead of those that the model would write.

        Returns:
            The text and audio tokens `[B, 1 + dep_q, 1]`, without the delays of the streams; `ungenerated_token_id` for
            a stream that does not advance, or that is not as old as the longest delay. None as long as no stream is, if
            not `support_out_of_sync`.

        Raises:
            ValueError: The shape is another one, or an argument is for generated audio.

        Example:
            >>> with lm_gen.streaming(1):
            ...     text_token = lm_gen.step(codes[:, :, :1])
        """
        step = self._step(input_tokens, depformer_replace_tokens)
        return None if step is None else step.tokens_BK[..., None]

    def step_with_extra_heads(
        self, input_tokens: Tensor, depformer_replace_tokens: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]] | None:
        """Process one frame, as `step` does.

        Args:
            input_tokens: As for `step`.
            depformer_replace_tokens: As for `step`.

        Returns:
            The tokens, and the probabilities `[B, 1, classes]` of each pause head; None as for `step`.

        Raises:
            ValueError: As for `step`.
        """
        step = self._step(input_tokens, depformer_replace_tokens)
        if step is None:
            return None
        pauses = self.lm_model.lm.pause_logits(step.hidden_B1D).softmax(dim=-1)
        return step.tokens_BK[..., None], list(pauses.unbind(dim=2))

    def reset_streaming(self, reset_mask: Tensor | None = None) -> None:
        """Reset the streams of `reset_mask` (`[B]`, all by default) and let them advance again."""
        super().reset_streaming(reset_mask)
        self._steps = 0

    @torch.no_grad()
    def _step(self, input_tokens: Tensor, replaced: Tensor | None) -> Step | None:
        streams = self._started()
        if replaced is not None and not self._codebooks:
            raise ValueError("depformer_replace_tokens: a speech-to-text model writes no audio to replace")
        given_BK = self._given(input_tokens)
        if self.check:
            self._check(given_BK)
        step = self._generator().step(
            streams.state,
            given_BK,
            streams.exec_mask,
            self._conditions,
            Hooks(self.on_text_logits_hook, self.on_text_hook, self.on_audio_hook),
            None if replaced is None else replaced[:, :, 0].clone(),
        )
        streams.commit(step.update)
        self._steps += 1
        return step if self.support_out_of_sync or self._steps > self.max_delay else None

    def _generator(self) -> Generator:
        return Generator(
            self.lm_model.lm,
            self._codebooks,
            SamplingConfig(temperature=float(self.temp_text) if self.use_sampling else 0.0, top_k=self.top_k_text),
            SamplingConfig(temperature=float(self.temp) if self.use_sampling else 0.0, top_k=self.top_k),
            float(self.cfg_coef),
            self.cfg_is_no_text,
        )

    def _fused(self, conditions: ConditionTensors) -> Conditions:
        """The conditions, and with guidance those of the other half."""
        model = self.lm_model
        sum_BD, source_BSD = sum_and_cross(model, conditions)
        cross = None if source_BSD is None else cast(Transformer, model.lm.transformer).cross_keys(source_BSD)
        until = self.cfg_is_masked_until
        masked = None if until is None else torch.tensor(until, device=model.device)
        if self.cfg_coef == 1.0:
            return Conditions(sum_BD, cross, masked_until_B=masked)
        halves = [_halves(part) if conditions else (part, part) for part in (sum_BD, cross)]
        return Conditions(halves[0][0], halves[1][0], halves[0][1], halves[1][1], masked)

    def _given(self, input_tokens: Tensor) -> Tensor:
        count = self.lm_model.n_q - self._codebooks
        given_BK1 = input_tokens[:, :count]
        expected = (self._started().batch_size, count, 1)
        if given_BK1.shape != expected:
            raise ValueError(
                f"tokens of shape {list(input_tokens.shape)}: expected {list(expected)}, the codes of one frame for "
                "each stream"
            )
        return given_BK1[..., 0]

    def _check(self, given_BK: Tensor) -> None:
        last = self.lm_model.initial_token_id
        if given_BK.numel() and ((given_BK < NO_TOKEN).any() or (given_BK > last).any()):
            raise ValueError(
                f"audio tokens from {int(given_BK.min())} to {int(given_BK.max())}: expected {NO_TOKEN} to {last}"
            )

    def _init_state(self, batch_size: int) -> dict[str, State]:
        self._codebooks, self._steps = self.lm_model.dep_q, 0
        return self._generator().init_state(batch_size)

    @property
    def _device(self) -> torch.device:
        return self.lm_model.device


def _halves(tensor: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if tensor is None:
        return None, None
    if len(tensor) % 2:
        raise ValueError(f"{len(tensor)} rows of conditions: with cfg_coef, each stream has two")
    given, null = tensor.chunk(2)
    return given, null


def _refuse_audio(guided: bool, on_audio_hook: Hook | None) -> None:
    if guided:
        raise ValueError(
            "classifier-free guidance (cfg_coef, cfg_is_masked_until, cfg_is_no_text) is for models that write "
            "audio: leave cfg_coef at 1 for speech to text"
        )
    if on_audio_hook is not None:
        raise ValueError("on_audio_hook would never be called: a speech-to-text model writes no audio")
