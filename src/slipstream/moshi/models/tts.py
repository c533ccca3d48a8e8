"""Text to speech under Kyutai's calls: `TTSModel`, its script machine and its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import load_file
from torch import Tensor

from slipstream.audio import load
from slipstream.model.config import SPEAKER_CONDITION
from slipstream.model.script import Entry, TokenIds, script_to_entries
from slipstream.model.script import ScriptMachine as StateMachine
from slipstream.model.script import ScriptState as State
from slipstream.moshi.conditioners import (
    ConditionAttributes,
    ConditionTensors,
    TensorCondition,
    dropout_all_conditions,
)
from slipstream.moshi.models import loaders
from slipstream.moshi.models.compression import MimiModel
from slipstream.moshi.models.lm import LMGen, LMModel
from slipstream.moshi.models.tts_reading import Reading

__all__ = [
    "DEFAULT_DSM_TTS_REPO",
    "DEFAULT_DSM_TTS_VOICE_REPO",
    "PUBLIC_DATA_DSM_TTS_REPO",
    "ConditionAttributes",
    "Entry",
    "State",
    "StateMachine",
    "TTSModel",
    "TTSResult",
    "TokenIds",
    "get_default_tts_model",
    "get_public_data_tts_model",
    "script_to_entries",
]

DEFAULT_DSM_TTS_REPO = "kyutai/tts-1.6b-en_fr"
DEFAULT_DSM_TTS_VOICE_REPO = "kyutai/tts-voices"
PUBLIC_DATA_DSM_TTS_REPO = "kyutai/tts-0.75b-en-public"

CUT_FRAMES = 2
"""Frames at the start of the audio that `simple_generate` leaves out, as the published function does."""


@dataclass
class TTSResult:
    """What a model has generated for a batch.

    Attributes:
        frames: The tokens of each step, `[B, 1 + K, 1]`, without the delays of the codebooks.
        logged_text_tokens: For each item, pairs of the token that the model wrote and the one that it read next.
        end_steps: The step after the last word of each item; None if the text did not fit.
        all_consumption_times: The step in which each entry was taken.
        all_transcripts: Each word, and its step. Divided by the frame rate, it is the word's time in the audio.
    """

    frames: list[Tensor]
    logged_text_tokens: list[list[tuple[int, int]]]
    end_steps: list[int | None]
    all_consumption_times: list[list[int]]
    all_transcripts: list[list[tuple[str, int]]]


@dataclass
class TTSModel:
    """A text-to-speech model: LM, codec, tokenizer, and how a script is read. Use `from_checkpoint_info`.

    Attributes:
        delay_steps: Steps by which the audio lags behind the text, without the delays of single codebooks.
        max_speakers: Voices that the cross-attention has room for.
        multistream: Whether the codebooks are those of two speakers.
        temp: Temperature of text and audio.
        cfg_coef: Factor of classifier-free guidance; models that are distilled take it as a condition instead.
        final_padding: Steps after the last word.
        n_q: Codebooks to generate.
        max_gen_length: Most steps.
        padding_bonus: Added to the score of padding: speech is slower when it is above 0.
    """

    lm: LMModel
    mimi: MimiModel
    tokenizer: sentencepiece.SentencePieceProcessor
    voice_suffix: str
    voice_repo: str
    machine: StateMachine
    delay_steps: int
    max_speakers: int = 5
    multistream: bool = False
    temp: float = 0.6
    cfg_coef: float = 1.0
    final_padding: int = 4
    n_q: int = 32
    max_gen_length: int = 30000
    padding_bonus: float = 0.0

    @staticmethod
    def from_checkpoint_info(
        checkpoint_info: loaders.CheckpointInfo,
        initial_padding: int = 2,
        max_padding: int = 8,
        voice_repo: str = DEFAULT_DSM_TTS_VOICE_REPO,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        **kwargs: Any,
    ) -> TTSModel:
        """Load a text-to-speech model.

        Args:
            checkpoint_info: Its files.
            initial_padding: Steps before the first word.
            max_padding: Most steps without a new word.
            voice_repo: Repository of the voices.
            device: Where it runs.
            dtype: Type of the LM's weights.
            **kwargs: Further fields.

        Returns:
            The model.

        Raises:
            ValueError: `n_q` is more than the model has.
        """
        raw, tts = checkpoint_info.raw_config or {}, checkpoint_info.tts_config
        model_id = raw["model_id"]
        mimi = checkpoint_info.get_mimi(device=device)
        lm = checkpoint_info.get_moshi(device=device, dtype=dtype)
        model = TTSModel(
            lm=lm,
            mimi=mimi,
            tokenizer=checkpoint_info.get_text_tokenizer(),
            voice_suffix=f".{model_id['sig']}@{model_id['epoch']}.safetensors",
            voice_repo=voice_repo,
            machine=StateMachine(
                TokenIds(lm.text_card + 1), tts.get("second_stream_ahead", 0), max_padding, initial_padding
            ),
            delay_steps=int(tts["audio_delay"] * mimi.frame_rate),
            multistream=tts.get("multistream", False),
            **kwargs,
        )
        if model.n_q > lm.n_q:
            raise ValueError(f"n_q={model.n_q}: this model has {lm.n_q} codebooks")
        if model.multistream and model.n_q < lm.n_q:
            _silence_codebooks(lm, model.n_q // 2)
        mimi.set_num_codebooks(model.n_q // 2 if model.multistream else model.n_q)
        if not model.multi_speaker:
            model.voice_suffix = ""
        return model

    @cached_property
    def valid_cfg_conditionings(self) -> set[float]:
        """The factors of guidance that a distilled model takes as a condition; empty for another model."""
        conditioners = self.lm.lm.config.conditioners
        return {float(value) for c in conditioners if c.name == "cfg" for value in c.possible_values}

    @cached_property
    def multi_speaker(self) -> bool:
        """Whether voices are conditions; otherwise the speech continues a recording of the voice."""
        return SPEAKER_CONDITION in self.lm.lm.conditioners

    def prepare_script(self, script: Sequence[str], padding_between: int = 0) -> list[Entry]:
        """Cut a script into entries, as `script_to_entries` does.

        Args:
            script: The turns.
            padding_between: Steps between words.

        Returns:
            The words and breaks.
        """
        return script_to_entries(
            self.tokenizer,
            self.machine.token_ids,
            self.mimi.frame_rate,
            script,
            multi_speaker=self.multi_speaker,
            padding_between=padding_between,
        )

    @torch.no_grad()
    def warmup(self, attributes: Sequence[ConditionAttributes], iters: int = 3, batch_size: int = 1) -> None:
        """Run some steps, so that the first ones of a speech are as fast as later ones.

        Args:
            attributes: The conditions of each stream.
            iters: Number of steps.
            batch_size: Number of streams.
        """
        gen = self._generator(attributes)
        given = self._given(batch_size)
        with gen.streaming(batch_size), self.mimi.streaming(batch_size):
            for _ in range(iters):
                if (frame := gen.step(given)) is not None:
                    self.mimi.decode(frame[:, 1:])

    @torch.no_grad()
    def generate(
        self,
        all_entries: Sequence[Sequence[Entry]],
        attributes: Sequence[ConditionAttributes],
        prefixes: list[Tensor] | None = None,
        cfg_is_no_prefix: bool = True,
        cfg_is_no_text: bool = True,
        on_frame: Callable[[Tensor], None] | None = None,
        **kwargs: Any,
    ) -> TTSResult:
        """Generate the tokens of a batch of scripts.

        Args:
            all_entries: The entries of each script.
            attributes: The conditions of each.
            prefixes: Tokens `[1 + K, T]` that each speech continues; see `get_prefix`.
            cfg_is_no_prefix: With guidance, hide the prefix from the half without conditions.
            cfg_is_no_text: With guidance, hide the text from the half without conditions.
            on_frame: Called with the tokens of each frame.
            **kwargs: Further arguments of `LMGen`.

        Returns:
            The tokens, and when the words come.

        Raises:
            ValueError: The model does not have guidance, or a prefix has another number of streams.
        """
        reading = Reading(self, all_entries, prefixes)
        masked = [length + self.delay_steps for length in reading.prefix_lengths] if prefixes is not None else None
        if not self.multistream:
            self.lm.dep_q = self.n_q
        gen = self._generator(
            attributes,
            on_text_logits_hook=reading.on_text_logits,
            on_text_hook=reading.on_text,
            on_audio_hook=reading.on_audio,
            cfg_is_masked_until=masked if cfg_is_no_prefix else None,
            cfg_is_no_text=cfg_is_no_text,
            **kwargs,
        )
        batch = len(all_entries)
        silent = torch.full((batch, self.lm.dep_q, 1), self.machine.token_ids.zero, device=self.lm.device)
        given, frames = self._given(batch), []
        with gen.streaming(batch):
            while reading.offset < self.max_gen_length and not reading.done:
                # Before the delay is over there is no audio, and the depth Transformer need not run.
                frame = gen.step(given, silent if reading.offset < self.delay_steps else None)
                reading.offset += 1
                if frame is not None:
                    frames.append(frame)
                    if on_frame is not None:
                        on_frame(frame)
        states = reading.states
        return TTSResult(
            frames,
            reading.logged,
            [state.end_step for state in states],
            [state.consumption_times for state in states],
            [state.transcript for state in states],
        )

    def get_voice_path(self, voice_name: str) -> Path:
        """Return the local path of a voice, and download it if necessary.

        Args:
            voice_name: A name in the repository of voices, `hf://owner/repo/file`, `file://path`, or a path.

        Returns:
            The path.
        """
        return Path(loaders.hf_get(voice_name + self.voice_suffix, self.voice_repo, check_local_file_exists=True))

    def make_condition_attributes(self, voices: list[Path], cfg_coef: float | None = None) -> ConditionAttributes:
        """Return the conditions for some voices.

        Args:
            voices: Files of voices, one for each speaker; see `get_voice_path`.
            cfg_coef: The factor of guidance, for a distilled model.

        Returns:
            The conditions.

        Raises:
            ValueError: A file is not one of a voice, or the model does not have the factor.
        """
        if cfg_coef is not None and cfg_coef not in self.valid_cfg_conditionings:
            valid = ", ".join(map(str, sorted(self.valid_cfg_conditionings))) or "none"
            raise ValueError(f"cfg_coef={cfg_coef}: this model takes {valid}")
        text: dict[str, str | float | None] = {"control": "ok", "cfg": None if cfg_coef is None else f"{cfg_coef:.1f}"}
        if not voices:
            return ConditionAttributes(text=text)
        for voice in voices:
            if voice.suffix != ".safetensors":
                raise ValueError(f"{voice} is not the file of a voice: expected a .safetensors file")
        embeddings = [load_file(voice, device="cpu")[SPEAKER_CONDITION] for voice in voices[: self.max_speakers]]
        _, width, length = embeddings[0].shape
        tensor = torch.zeros(1, self.max_speakers, length, width)
        mask = torch.zeros(1, self.max_speakers, length, dtype=torch.bool)
        for index, embedding in enumerate(embeddings):
            tensor[:, index], mask[:, index] = embedding.transpose(1, 2), True
        condition = TensorCondition(tensor.flatten(1, 2), mask.flatten(1, 2))
        return ConditionAttributes(text=text, tensor={SPEAKER_CONDITION: condition})

    def get_prefix(self, audio_path: Path) -> Tensor:
        """Return the tokens of a recording that a speech continues, `[1 + K, T]`.

        Args:
            audio_path: A recording of the voice.
        """
        samples = torch.from_numpy(load(audio_path, self.mimi.sample_rate)).to(self.lm.device)
        with torch.no_grad():
            codes = self.mimi.encode(samples[None, None])[0, :, :-2]
        return torch.cat([torch.full_like(codes[:1], self.machine.token_ids.zero), codes])

    @torch.no_grad()
    def simple_generate(
        self, text: str | list[str], voice: str | list[str], cfg_coef: float = 2.0, show_progress: bool = True
    ) -> list[Tensor]:
        """Generate audio from texts and voices.

        Args:
            text: One text, or several.
            voice: One voice for all texts, or one for each; see `get_voice_path`.
            cfg_coef: The factor of guidance.
            show_progress: No effect.

        Returns:
            Samples `[S]` for each text.

        Raises:
            ValueError: There are other numbers of texts and voices, or none.
        """
        texts, voices = ([item] if isinstance(item, str) else list(item) for item in (text, voice))
        if isinstance(text, str):
            texts *= len(voices)
        elif isinstance(voice, str):
            voices *= len(texts)
        if not texts or len(texts) != len(voices):
            raise ValueError(f"{len(texts)} texts and {len(voices)} voices: expected as many of both, and at least one")
        paths = [Path(name) if name.endswith(".safetensors") else self.get_voice_path(name) for name in voices]
        distilled = bool(self.valid_cfg_conditionings)
        if not distilled:
            self.cfg_coef = cfg_coef
        attributes, prefixes = [], None
        if self.multi_speaker:
            attributes = [self.make_condition_attributes([path], cfg_coef if distilled else None) for path in paths]
        else:
            attributes = [ConditionAttributes()] * len(paths)
            prefixes = [self.get_prefix(path) for path in paths]
        entries = [self.prepare_script([item], padding_between=1) for item in texts]
        result = self.generate(entries, attributes, prefixes=prefixes)
        with self.mimi.streaming(len(entries)):
            frames = [self.mimi.decode(frame[:, 1:]).clip(-1, 1) for frame in result.frames[self.delay_steps :]]
        lengths = [0] * len(entries) if prefixes is None else [prefix.shape[-1] for prefix in prefixes]
        kept = frames[CUT_FRAMES:]
        return [
            torch.cat([frame[row, 0] for frame in kept[lengths[row] : result.end_steps[row]]])
            for row in range(len(entries))
        ]

    def _generator(self, attributes: Sequence[ConditionAttributes], **kwargs: Any) -> LMGen:
        """Make the generator of streams with these conditions. kwargs: further arguments of `LMGen`."""
        return LMGen(
            self.lm,
            temp=self.temp,
            temp_text=self.temp,
            cfg_coef=self.cfg_coef,
            condition_tensors=self._conditions(attributes),
            **kwargs,
        )

    def _conditions(self, attributes: Sequence[ConditionAttributes]) -> ConditionTensors:
        if self.cfg_coef != 1.0:
            if self.valid_cfg_conditionings:
                raise ValueError(
                    f"cfg_coef={self.cfg_coef}: this model is distilled from guidance, so leave it at 1 and pass "
                    "cfg_coef to make_condition_attributes"
                )
            attributes = [*attributes, *dropout_all_conditions(attributes)]
        provider = self.lm.condition_provider
        return {} if provider is None else provider.prepare_and_provide(list(attributes))

    def _given(self, batch: int) -> Tensor:
        """No tokens for the codebooks that are not generated."""
        missing = self.lm.n_q - self.lm.dep_q
        return torch.full((batch, missing, 1), self.machine.token_ids.zero, device=self.lm.device)


@torch.no_grad()
def _silence_codebooks(lm: LMModel, kept: int) -> None:
    """Ignore the codebooks of both speakers after the first `kept`: their embeddings become zero."""
    half = lm.n_q // 2
    depth = lm.lm.depth
    assert depth is not None
    for k in (k + offset for k in range(kept, half) for offset in (0, half)):
        lm.lm.audio_emb.weight[k] = 0
        if k < len(depth.audio_emb.weight):
            depth.audio_emb.weight[k] = 0


def get_default_tts_model(n_q: int = 32, device: torch.device | str = "cuda") -> TTSModel:
    """Load `kyutai/tts-1.6b-en_fr`.

    Args:
        n_q: Codebooks to generate, 8 to 32. More sound better, and are slower.
        device: Where it runs.
    """
    info = loaders.CheckpointInfo.from_hf_repo(DEFAULT_DSM_TTS_REPO)
    return TTSModel.from_checkpoint_info(info, n_q=n_q, temp=0.6, device=device)


def get_public_data_tts_model(device: torch.device | str = "cuda") -> TTSModel:
    """Load `kyutai/tts-0.75b-en-public`.

    Args:
        device: Where it runs.
    """
    info = loaders.CheckpointInfo.from_hf_repo(PUBLIC_DATA_DSM_TTS_REPO)
    return TTSModel.from_checkpoint_info(info, n_q=16, temp=0.6, device=device)
