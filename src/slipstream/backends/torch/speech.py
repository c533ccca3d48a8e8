"""TorchSpeechRunner: text to speech with PyTorch, on CPU or CUDA. Shapes: B slots, K codebooks, S samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from slipstream.arrays import BoolArray, FloatArray, IntArray
from slipstream.errors import ConfigError
from slipstream.model.config import PAD_ID, SPEAKER_CONDITION, SamplingConfig
from slipstream.model.numerics import NO_TOKEN, UNGENERATED
from slipstream.model.speech import Decide, SpeechOutput, Voice
from slipstream.model.tts_config import SpeechSampling, TTSConfig
from slipstream.nn.generation import Conditions, Generator, Hooks
from slipstream.nn.layers import Transformer
from slipstream.nn.lm import LM, Conditioner
from slipstream.nn.mimi import Mimi
from slipstream.nn.sampling import pick_token, row_noise
from slipstream.nn.state import State, commit, read_slot, write_slots

VOICE_FRAMES = 125
"""Positions of a published voice: 10 s."""
_STREAMS = 64
"""More than the streams of any model: each of them has its own number in the noise of a step."""


@dataclass(frozen=True)
class SpeechState:
    """One slot of a `TorchSpeechRunner`, copied."""

    state: State
    step: int


class TorchSpeechRunner:
    """A model over `slots` streams. What a slot generates depends on its voice, its text and its seed only.

    Args:
        config: The model.
        codec: The codec, in float32.
        lm: The LM.
        slots: Number of streams.
        sampling: How tokens are picked; the configuration's by default.
        guidance: Factor of guidance. A distilled model gets it as a condition; for another, a second half of the batch
            without the conditions is computed, unless it is 1.
        codebooks: Codebooks to generate; all by default.
        voice_frames: Positions of a voice. Shorter ones are padded.
        padding_bonus: Added to the score of padding: speech is slower when it is above 0.
    """

    def __init__(
        self,
        config: TTSConfig,
        codec: Mimi,
        lm: LM,
        *,
        slots: int = 1,
        sampling: SpeechSampling | None = None,
        guidance: float = 1.0,
        codebooks: int | None = None,
        voice_frames: int = VOICE_FRAMES,
        padding_bonus: float = 0.0,
    ) -> None:
        assert config.lm.depth is not None
        self.config, self.slots = config, slots
        self.codebooks = config.lm.depth.num_codebooks if codebooks is None else codebooks
        if slots < 1:
            raise ValueError(f"slots={slots}: expected at least 1")
        if config.multistream:
            raise ConfigError("models with the codebooks of two speakers (multistream) cannot be run here")
        if not config.codec.num_semantic < self.codebooks <= config.lm.depth.num_codebooks:
            least, most = config.codec.num_semantic + 1, config.lm.depth.num_codebooks
            raise ConfigError(f"codebooks={codebooks}: this model has up to {most}, and needs {least}")
        if not math.isfinite(guidance):
            raise ConfigError(f"guidance={guidance}: expected a finite number")
        self.codec, self.lm = codec.eval().requires_grad_(False), lm.eval().requires_grad_(False)
        self.device = lm.text_linear.weight.device
        self._voice_frames, self._bonus = voice_frames, padding_bonus
        distilled = {c.name: c.possible_values for c in config.lm.conditioners}.get("cfg")
        self._values = {"control": "ok"} if "control" in lm.conditioners else {}
        if distilled:
            self._values["cfg"] = f"{guidance:.1f}"
            if self._values["cfg"] not in distilled:
                raise ConfigError(f"guidance={guidance}: this model takes {', '.join(distilled)}")
        sampling = config.sampling if sampling is None else sampling
        self._generator = Generator(
            lm,
            self.codebooks,
            sampling.text,
            sampling.audio,
            1.0 if distilled else guidance,
            no_text=True,
            pick=self._pick,
        )
        self.latency_steps = config.delay_steps + self._generator.max_delay
        self._step_B = np.zeros(slots, np.int64)  # steps of each slot
        with torch.inference_mode():
            self._delay_K = torch.tensor(self._generator.delays[1 : self.codebooks + 1], device=self.device)
            self._fresh = self._empty(1)
            self._state = self._empty(slots)

    def reset(self, slot: int, voice: Voice | None, seed: int) -> None:
        """Start a new stream in a slot; see `SpeechRunner.reset`."""
        self._check(slot)
        with torch.inference_mode():
            own: dict[str, State] = {"voice": self._voice(voice), "seed": torch.tensor([seed], device=self.device)}
            write_slots(self._state, self._index(slot), self._fresh | own)
        self._step_B[slot] = 0

    @torch.inference_mode()
    def step(self, decide: Decide, active_B: BoolArray) -> SpeechOutput:
        """Advance the active slots by one step; see `SpeechRunner.step`."""
        state, active = self._state, torch.from_numpy(active_B).to(self.device)
        forced_BK = torch.empty(0)

        def text(token_B: Tensor) -> None:
            nonlocal forced_BK
            chosen, forced = decide(token_B.cpu().numpy())
            token_B.copy_(torch.from_numpy(chosen))
            forced_BK = torch.from_numpy(forced).to(self.device)

        def audio(tokens_BK: Tensor) -> None:
            step_B1 = torch.from_numpy(self._step_B).to(self.device)[:, None]
            tokens_BK.masked_fill_(step_B1 < self._delay_K + self.config.delay_steps, NO_TOKEN)
            tokens_BK.copy_(torch.where(forced_BK == UNGENERATED, tokens_BK, forced_BK))

        silent = None
        if (self._step_B[active_B] < self.config.delay_steps).all():  # no audio yet: the depth Transformer need not run
            silent = torch.full((self.slots, self.codebooks), NO_TOKEN, device=self.device)
        given = torch.full((self.slots, self.config.lm.num_codebooks - self.codebooks), NO_TOKEN, device=self.device)
        generation = cast("dict[str, State]", state["generation"])
        step = self._generator.step(
            generation, given, active, self._conditions(), Hooks(self._on_text_logits, text, audio), silent
        )
        commit({name: generation[name] for name in step.update}, step.update, active)
        audio_B = active_B & (self._step_B >= self.latency_steps)
        self._step_B[active_B] += 1
        pcm_BS = np.zeros((self.slots, self.config.codec.frame_samples), np.float32)
        if audio_B.any():
            codes_BK1 = step.tokens_BK[:, 1:, None].clamp(min=0)
            samples, codec_state = self.codec.decode(codes_BK1, state["codec"])
            assert codec_state is not None
            commit(state["codec"], codec_state, torch.from_numpy(audio_B).to(self.device))
            pcm_BS[audio_B] = samples.clamp(-1, 1).cpu().numpy()[audio_B]
        return SpeechOutput(pcm_BS, audio_B)

    def snapshot(self, slot: int) -> SpeechState:
        """Copy the state of one slot, with its voice."""
        self._check(slot)
        with torch.inference_mode():
            return SpeechState(read_slot(self._state, slot), int(self._step_B[slot]))

    def restore(self, slot: int, state: SpeechState) -> None:
        """Put a copy of a state into a slot."""
        self._check(slot)
        with torch.inference_mode():
            write_slots(self._state, self._index(slot), state.state)
        self._step_B[slot] = state.step

    def encode(self, pcm_S: FloatArray) -> IntArray:
        """Encode a recording; see `SpeechRunner.encode`."""
        with torch.inference_mode():
            codes, _ = self.codec.encode(torch.from_numpy(pcm_S)[None].to(self.device), None, self.codebooks)
        return codes[0, :, self.config.codec.blank_frames :].cpu().numpy()

    def _check(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot}: this runner has slots 0 to {self.slots - 1}")

    def _index(self, slot: int) -> Tensor:
        return torch.tensor([slot], device=self.device)

    def _empty(self, batch: int) -> dict[str, State]:
        voice = cast("dict[str, Tensor]", self._voice(None))
        return {
            "generation": self._generator.init_state(batch),
            "codec": self.codec.decoder_state(batch),
            "voice": {name: tensor.repeat(batch, *[1] * (tensor.dim() - 1)) for name, tensor in voice.items()},
            "seed": torch.zeros(batch, dtype=torch.int64, device=self.device),
        }

    def _on_text_logits(self, logits: Tensor) -> None:
        if self._bonus:
            logits[..., PAD_ID] += self._bonus

    def _pick(self, logits_BV: Tensor, sampling: SamplingConfig, stream: int) -> Tensor:
        if sampling.temperature == 0:
            return pick_token(logits_BV, sampling)
        count_B = torch.from_numpy(self._step_B * _STREAMS + stream).to(self.device)
        noise = row_noise(cast(Tensor, self._state["seed"]), count_B, logits_BV.shape[1])
        return pick_token(logits_BV, sampling, noise_BV=noise)

    def _conditions(self) -> Conditions:
        voice = cast("dict[str, Tensor]", self._state["voice"])
        masked = voice["prefix"] + self.config.delay_steps if "prefix" in voice else None
        return Conditions(voice.get("sum"), voice.get("cross"), voice.get("null_sum"), voice.get("null_cross"), masked)

    def _voice(self, voice: Voice | None) -> State:
        """What a stream is conditioned on, as a batch of one."""
        crosses = any(c.fuse == "cross" for c in self.config.lm.conditioners)
        if voice is not None and bool(voice.embeddings) != crosses:
            kind = "embeddings (.safetensors)" if crosses else "recordings to continue"
            raise ConfigError(f"voice {voice.name!r} is of another kind: the voices of this model are {kind}")
        parts: dict[str, State] = {}
        guided = self._generator.guidance != 1.0
        for prefix, values, given in (("", self._values, voice), ("null_", {}, None)):
            if prefix and not guided:
                break
            if (summed := self.lm.condition(values)) is not None:
                parts[prefix + "sum"] = summed
            if crosses:
                parts[prefix + "cross"] = self._cross(given)
        if guided and not crosses:
            frames = 0 if voice is None else voice.prefix_frames
            parts["prefix"] = torch.tensor([frames], device=self.device)
        return parts

    def _cross(self, voice: Voice | None) -> Tensor:
        conditioner = cast(Conditioner, self.lm.conditioners[SPEAKER_CONDITION])
        speakers, T, D = self.config.max_speakers, self._voice_frames, conditioner.config.dim
        vectors, mask = torch.zeros(1, speakers, T, D), torch.zeros(1, speakers, T)
        embeddings = () if voice is None else voice.embeddings
        if len(embeddings) > speakers:
            raise ConfigError(f"{len(embeddings)} voices: this model has up to {speakers}")
        for number, embedding in enumerate(embeddings):
            width, length = embedding.shape
            if width != D or length > T:
                name = voice.name if voice else ""
                raise ConfigError(f"voice {name!r} has shape {list(embedding.shape)}: expected [{D}, up to {T}]")
            vectors[0, number, :length], mask[0, number, :length] = torch.from_numpy(embedding.T.copy()), 1
        sequence = conditioner.sequence(vectors.flatten(1, 2).to(self.device), mask.flatten(1, 2).to(self.device))
        source = self.lm.fuse_cross({SPEAKER_CONDITION: sequence})
        assert source is not None
        return cast(Transformer, self.lm.transformer).cross_keys(source)
