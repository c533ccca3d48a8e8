"""Text to speech: an LM that reads a text and learns when a word begins, and the audio of a recording, later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slipstream.bundle import ModelBundle
from slipstream.checkpoints.checkpoint import read_codec
from slipstream.checkpoints.speech import SpeechCheckpoint, read_speech, resolve_speech
from slipstream.data.speech_rows import SpeechBatch, SpeechSampler
from slipstream.errors import ConfigError
from slipstream.model.numerics import NO_TOKEN, UNGENERATED
from slipstream.model.tts_config import TTSConfig
from slipstream.nn.build import build_codec, build_lm
from slipstream.nn.lm import LM
from slipstream.schema import parse
from slipstream.train.model import start_audio_embeddings
from slipstream.train.options import TTSLossOptions, TTSRun
from slipstream.train.sampled import SampledTask
from slipstream.train.speech import find_codec
from slipstream.train.transfer import Numbers, send


class SpeakTask(SampledTask[SpeechSampler]):
    """The LM and its depth Transformer learn to speak, from a frozen codec's tokens.

    `dropout`: share of rows without the text and the conditions, for guidance. Shapes: B rows, T steps, K codebooks of
    the depth Transformer, N steps that have audio to learn.
    """

    def __init__(self, lm: LM, sampler: SpeechSampler, loss: TTSLossOptions, dropout: float) -> None:
        super().__init__(sampler)
        self.module, self.weights, self.dropout = lm, loss, dropout
        self.row_seconds = sampler.data.seconds
        self.positions_per_second = sampler.frame_rate
        semantic = sampler.config.codec.num_semantic
        weight_K = np.array([loss.semantic if k < semantic else 1.0 for k in range(sampler.codebooks)], np.float32)
        self._weight_K = weight_K / weight_K.sum()

    def loss(self, batch: SpeechBatch, step: int, progress: float) -> tuple[Tensor, Numbers]:
        lm, device = self.module, self.module.text_linear.weight.device
        text_BT, asked_BT, audio_BKT, draw_B = (
            send(array, device) for array in (batch.text_BT, batch.asked_BT, batch.audio_BKT, batch.draw_B)
        )
        dropped_B = (draw_B < self.dropout) & torch.is_grad_enabled()
        hidden_BTD = spoken_hidden(lm, text_BT, audio_BKT, dropped_B)
        labels_BT = asked_BT.masked_fill((asked_BT == UNGENERATED) | dropped_B[:, None], -100)
        scores = lm.text_logits(hidden_BTD).float().flatten(0, 1)
        text = F.cross_entropy(scores, labels_BT.flatten(), reduction="sum") / labels_BT.numel()
        assert lm.depth is not None
        # The steps that have audio to learn are found on the host, which does not wait for the device.
        audible_N = np.flatnonzero(batch.known_BKT.any(axis=1))
        known_NK = batch.known_BKT.transpose(0, 2, 1).reshape(-1, batch.known_BKT.shape[1])[audible_N]
        at_N, weight_NK = send(audible_N, device), send(known_NK * self._weight_K, device)
        audio_NK = audio_BKT.transpose(1, 2).flatten(0, 1)[at_N]
        logits_NKV = lm.depth(hidden_BTD.flatten(0, 1)[at_N], text_BT.flatten()[at_N], audio_NK).float()
        loss_NK = F.cross_entropy(logits_NKV.transpose(1, 2), audio_NK.clamp(min=0), reduction="none")
        loss_K = (loss_NK * weight_NK).sum(dim=0) / text_BT.numel()
        semantic = self.sampler.config.codec.num_semantic
        numbers = {"text": text, "semantic": loss_K[:semantic].sum(), "acoustic": loss_K[semantic:].sum()}
        return self.weights.text * text + loss_K.sum(), {name: value.detach() for name, value in numbers.items()}


def spoken_hidden(lm: LM, text_BT: Tensor, audio_BKT: Tensor, dropped_B: Tensor) -> Tensor:
    """The LM's output `[B, T, D]` in each step of speech whose tokens are known, as `Generator` computes it.

    Args:
        text_BT: The text of each step.
        audio_BKT: The audio of each step, of the codebooks that the model writes.
        dropped_B: The rows without text and conditions, as in the null half of guidance.
    """
    config = lm.config
    others = audio_BKT.new_full((len(audio_BKT), config.num_codebooks - audio_BKT.shape[1], audio_BKT.shape[2]), -1)
    text_BT = torch.where(dropped_B[:, None], NO_TOKEN, text_BT)
    written_BKT = torch.cat([text_BT[:, None], audio_BKT, others], dim=1)
    read_BKT = F.pad(written_BKT[..., :-1], (1, 0))
    initial = [config.text_initial_id] + [config.audio_initial_id] * config.num_codebooks
    initial_K1, delay_K1 = (send(np.array(of)[:, None], text_BT.device) for of in (initial, config.stream_delays))
    step_T = torch.arange(text_BT.shape[1], device=text_BT.device)
    read_BKT = torch.where(step_T <= delay_K1, initial_K1, read_BKT)
    condition_BD = lm.condition({"control": "ok"} if "control" in lm.conditioners else {})
    if condition_BD is not None:
        null_1D = lm.condition()
        assert null_1D is not None
        condition_BD = torch.where(dropped_B[:, None], null_1D, condition_BD)
    hidden_BTD: Tensor = lm(read_BKT[:, 0], read_BKT[:, 1:], None, condition_BD)[0]
    return hidden_BTD


def start_speech(options: TTSRun) -> tuple[LM, SpeechCheckpoint]:
    """The LM that a run trains, and the model that it becomes, with the codec's tensors and without the LM's."""
    model, data = options.model, options.data
    torch.manual_seed(options.run.seed)
    if model.base is not None:
        base = read_speech(resolve_speech(model.base))
        _check_trainable(base.config)
        lm = build_lm(base.config.lm, base.lm).train().requires_grad_(True)
        return lm, SpeechCheckpoint(base.config, {}, base.codec, data.tokenizer or base.tokenizer)
    assert model.lm is not None
    assert model.codec is not None
    weights, codec = find_codec(model.codec)
    tokenizer = data.tokenizer or _tokenizer_of(model.codec)
    fields = {
        "codec": codec.model_dump(),
        "lm": model.lm.model_dump(),
        "delay_seconds": model.audio_delay,
        "second_stream_ahead": model.second_stream_ahead,
    }
    config = parse(TTSConfig, fields, "model")
    _check_trainable(config)
    lm, tensors = LM(config.lm), read_codec(weights, codec)
    start_audio_embeddings(lm, build_codec(codec, tensors))
    return lm, SpeechCheckpoint(config, {}, tensors, tokenizer)


def _tokenizer_of(start: str) -> Path:
    if not (Path(start) / "config.json").is_file() and Path(start).is_dir():
        raise ConfigError("data.tokenizer: give a SentencePiece model: model.codec is a codec without one")
    return ModelBundle.resolve(start).sources.tokenizer


def _check_trainable(config: TTSConfig) -> None:
    if config.multistream or any(c.fuse == "cross" for c in config.lm.conditioners):
        raise ConfigError(
            "a model with voices by embeddings (cross-attention), or with the codebooks of two speakers, cannot be "
            "trained: packs hold neither; use an LM without cross_attention"
        )
    assert config.lm.depth is not None
    if config.lm.depth.num_codebooks <= (semantic := config.codec.num_semantic):
        raise ConfigError(
            f"model.lm.depth.num_codebooks={config.lm.depth.num_codebooks}: a voice needs more than the {semantic} "
            "semantic codebooks"
        )
    if any(c.name == "cfg" for c in config.lm.conditioners):
        raise ConfigError("a model whose guidance is distilled (conditioner cfg) cannot be trained: leave cfg out")
