"""A little world to train in: eight utterances of chords, one chord a word, and a model small enough for seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from slipstream.arrays import FloatArray
from slipstream.checkpoints.checkpoint import Checkpoint
from slipstream.data.options import DataOptions
from slipstream.data.packs import Clip, Pack, PackKind, write_pack
from slipstream.data.rows import RowOptions
from slipstream.data.spectral import NO_AUGMENT
from slipstream.data.tokenizer import train_tokenizer
from slipstream.events import Word
from slipstream.model.config import CodecConfig, ConditionerConfig, LMConfig, MelConfig, STTConfig, TransformerConfig
from slipstream.model.text import Tokenizer
from slipstream.nn.lm import LM
from slipstream.nn.mimi import Mimi
from slipstream.train.artifacts import export_lm
from slipstream.train.codebooks import start_codebooks
from slipstream.train.loop import Taken, Trainer

RATE = 24_000
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def rows(
    seconds: float,
    weights: dict[str, float],
    delay: tuple[int, int] = (6, 6),
    *,
    sentences: Sequence[str] = (),
    **data: object,
) -> RowOptions:
    """Rows that are not augmented. data: other keys of `DataOptions`."""
    given = {"packs": ("unread",), "seconds": seconds, "weights": weights, "augment": NO_AUGMENT, **data}
    return RowOptions(DataOptions.model_validate(given), delay, sentences=sentences)


def config(*, conditioned: bool = False) -> STTConfig:
    transformer = TransformerConfig(
        dim=32,
        num_heads=2,
        num_layers=1,
        ffn_dim=64,
        context=16,
        max_period=1e4,
        norm="layer_norm",
        gated=False,
        layer_scale=True,
    )
    codec = CodecConfig(
        num_filters=8,
        ratios=(2, 2),
        transformer=transformer,
        codebook_dim=16,
        codebook_size=64,
        num_codebooks=4,
        mel=MelConfig(n_mels=24),
    )
    delay = ConditionerConfig(name="delay", kind="continuous", dim=16, scale_factor=10.0)
    lm = LMConfig(
        transformer=transformer.model_copy(
            update={
                "dim": 64,
                "ffn_dim": 128,
                "num_layers": 2,
                "norm": "rms_norm",
                "gated": True,
                "context": 32,
                "layer_scale": False,
            }
        ),
        text_vocab=60,
        audio_vocab=64,
        num_codebooks=4,
        pause_heads=4,
        conditioners=(delay,) if conditioned else (),
    )
    return STTConfig(codec=codec, lm=lm, delay_seconds=0.48, delay_frames=6)


def utterances(count: int = 8) -> list[tuple[FloatArray, tuple[Word, ...]]]:
    """Audio and its words: three chords each, with pauses between."""
    rng = np.random.default_rng(7)
    return [_utterance([WORDS[i] for i in rng.choice(len(WORDS), 3)]) for _ in range(count)]


def tokenizer(folder: Path) -> Path:
    path = folder / "tokenizer.model"
    rng = np.random.default_rng(0)
    train_tokenizer((" ".join(rng.choice(WORDS, 6)) for _ in range(300)), path, 60, hard_limit=False)
    return path


def codec(heard: Sequence[FloatArray]) -> Mimi:
    """An untrained codec whose codebooks are placed on its latents of `heard`."""
    torch.manual_seed(1)
    mimi = Mimi(config().codec).eval()
    with torch.inference_mode():
        latents = torch.cat(
            [mimi.latent(torch.from_numpy(x)[None])[0][0].T for x in (*heard, np.zeros(RATE, np.float32))]
        )
        start_codebooks(mimi.quantizer, latents)
    return mimi


def token_pack(folder: Path, mimi: Mimi, spoken: Sequence[tuple[FloatArray, tuple[Word, ...]]]) -> Pack:
    """The utterances as the codec's tokens."""

    def encode(samples: FloatArray) -> np.ndarray:
        with torch.inference_mode():
            return mimi.encode(torch.from_numpy(samples)[None])[0][0].T.numpy()

    silence = encode(np.zeros(2 * RATE, np.float32))[-1]
    kind = PackKind("tokens", 4, 12.5, tuple(float(code) for code in silence))
    write_pack(folder, kind, ((encode(samples), _clip(words)) for samples, words in spoken))
    return Pack(folder)


def base_folder(folder: Path) -> Path:
    """Write `base` (a model with random weights), `tokenizer.model`, and `pack` (four utterances as tokens)."""
    pieces = tokenizer(folder)
    spoken = utterances(4)
    mimi = codec([samples for samples, _ in spoken])
    token_pack(folder / "pack", mimi, spoken)
    torch.manual_seed(2)
    arrays = {name: tensor.numpy() for name, tensor in mimi.state_dict().items()}
    lm = config().lm.model_copy(update={"text_vocab": Tokenizer(pieces).vocab_size})
    whole = config().model_copy(update={"lm": lm})
    export_lm(LM(lm).state_dict(), Checkpoint(whole, {}, arrays, pieces), folder / "base")
    return folder


def kill_at(step: int, run: Trainer) -> None:
    """Run up to step number `step`, which dies."""
    train_step = run._train_step

    def step_or_die(*arguments: object) -> Taken:
        if run.step == step:
            raise KeyboardInterrupt
        return train_step(*arguments)  # type: ignore[arg-type]

    run._train_step = step_or_die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.run()


def _clip(words: tuple[Word, ...]) -> Clip:
    text = " ".join(word.text for word in words)
    return Clip(0, 0, text, "en", "chords", "sine", tuple((w.text, w.start, w.end) for w in words))


def _utterance(texts: Sequence[str]) -> tuple[FloatArray, tuple[Word, ...]]:
    samples = np.zeros(round(RATE * (0.4 + 0.6 * len(texts))), np.float32)
    words = []
    for i, text in enumerate(texts):
        start = 0.2 + 0.6 * i
        number = WORDS.index(text)
        time = np.arange(round(0.4 * RATE)) / RATE
        chord = sum(np.sin(2 * np.pi * f * time) for f in (300 + 97 * number, 1000 + 211 * (number * 3 % 10)))
        samples[round(start * RATE) :][: len(time)] = 0.2 * chord
        words.append(Word(text, start, start + 0.4))
    return samples, tuple(words)
