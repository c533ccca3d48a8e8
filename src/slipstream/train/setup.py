"""What the options of a run determine: its shapes, vocabulary and delay, its rows, and the model it starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from slipstream.bundle import ModelBundle
from slipstream.data.options import DataOptions, SampleAugment
from slipstream.data.packs import Pack
from slipstream.data.phones import PhoneInventory
from slipstream.data.rows import RowOptions
from slipstream.data.texts import read_texts
from slipstream.data.waves import WaveSampler, wave_effects
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import END_OF_TURN_ABOVE, CodecConfig, ConditionerConfig, LMConfig, MelConfig, STTConfig
from slipstream.model.text import Tokenizer
from slipstream.train.model import SpeechModel
from slipstream.train.options import (
    AnyRun,
    CodecRun,
    LMRun,
    ModelOptions,
    RunOptions,
    read_run,
)
from slipstream.train.saved import CHECKPOINT_FILE
from slipstream.train.speech import PHONES_FILE, find_phones, read_phones, read_speech_weights
from slipstream.train.vocabulary import Growth, extends
from slipstream.train.whisper_start import later_ages

DEFAULT_DELAY = 6
DELAY = ConditionerConfig(name="delay", kind="continuous", dim=64, scale_factor=10.0)
"""The condition that a model gets which is trained with several delays for the first time; its value is in seconds."""


def new_speech_model(model: ModelOptions, text: TextOptions, phones: int, seed: int) -> SpeechModel:
    """A codec, an LM and heads of `phones` phones, with the weights of `model.init` where they fit."""
    codec, lm = shapes_of(model, text.growth)
    if codec.reads_samples:
        raise ConfigError(
            "model.codec.mel or model.codec.whisper: one of these front ends is required to train with an LM"
        )
    torch.manual_seed(seed)
    trained = SpeechModel(delayed(undelayed(codec, lm, text), text.delay), phones)
    if model.init is not None:
        weights = read_speech_weights(model.init)
        if text.growth is not None:
            grown = text.growth.grown({name: w.numpy() for name, w in weights.items()}, "lm.")
            weights = {name: torch.from_numpy(array) for name, array in grown.items()}
        if (origin := origin_of(model)) is not None:
            weights = later_ages(weights, trained.config.delay_frames - origin.config.delay_frames)
        ours = trained.state_dict()
        taken = {name: w for name, w in weights.items() if name in ours and ours[name].shape == w.shape}
        if not taken:
            raise CheckpointError(f"{model.init}: none of its weights fits this model")
        trained.load_state_dict(taken, strict=False)
    return trained


def shapes_of(model: ModelOptions, growth: Growth | None = None) -> tuple[CodecConfig, LMConfig]:
    """The shapes in the options of a run, or else those of the model it starts from, with a grown vocabulary."""
    if model.codec is not None and model.lm is not None:
        return model.codec, model.lm
    origin = origin_of(model)
    if origin is None:
        raise ConfigError("model.codec and model.lm: both are needed to train a codec, or a model.init that has them")
    return model.codec or origin.config.codec, model.lm or grown(origin.config.lm, growth)


def grown(lm: LMConfig, growth: Growth | None) -> LMConfig:
    """The LM's shapes with the vocabulary that it grows to."""
    return lm if growth is None else lm.model_copy(update={"text_vocab": growth.new})


def origin_of(model: ModelOptions) -> ModelBundle | None:
    """The model that a run starts from, if it starts from one and not from a training checkpoint."""
    start = model.base or model.init
    return None if start is None or Path(start).is_file() else ModelBundle.resolve(start)


@dataclass(frozen=True, slots=True)
class TextOptions:
    """What a run writes: its vocabulary, the bounds of its delay in frames, and how the vocabulary grew."""

    tokenizer: Path
    delay: tuple[int, int]
    growth: Growth | None = None


def text_options(data: DataOptions, model: ModelOptions) -> TextOptions:
    """The value in the options, or else that of the model that the run starts from."""
    origin = origin_of(model)
    tokenizer = data.tokenizer or (origin.sources.tokenizer if origin else None)
    if tokenizer is None:
        raise ConfigError("data.tokenizer: give a SentencePiece model, or start from a model that has one")
    delay = data.delay or (origin.config.delay_frames if origin else DEFAULT_DELAY)
    growth = find_growth(origin.sources.tokenizer, tokenizer, model) if origin else None
    return TextOptions(tokenizer, (delay, delay) if isinstance(delay, int) else delay, growth)


def find_growth(old: Path, new: Path, model: ModelOptions) -> Growth | None:
    """How the vocabulary grows, if it does; one of another size needs a new LM, `model.lm`."""
    before, after = Tokenizer(old), Tokenizer(new)
    if after.vocab_size == before.vocab_size or (model.lm is not None and not extends(after, before)):
        return None
    if model.lm is not None and (model.base is not None or model.lm.text_vocab != after.vocab_size):
        return None
    return Growth(old, new)


def open_tokenizer(path: Path, lm: LMConfig) -> Tokenizer:
    """The run's tokenizer. Raises `ConfigError` where the LM's vocabulary has another size."""
    tokenizer = Tokenizer(path)
    if tokenizer.vocab_size != lm.text_vocab:
        raise ConfigError(f"{path} has {tokenizer.vocab_size} tokens, the LM's text_vocab is {lm.text_vocab}")
    return tokenizer


def undelayed(codec: CodecConfig, lm: LMConfig, text: TextOptions) -> STTConfig:
    """The configuration before `delayed` sets its delay."""
    return STTConfig(codec=codec, lm=lm, delay_seconds=0, delay_frames=text.delay[1])


def with_drawn_delay(lm: LMConfig, bounds: tuple[int, int]) -> LMConfig:
    """The LM with the condition `delay`, which a drawn delay needs. Raises `ConfigError` if it cannot have one."""
    if bounds[0] == bounds[1] or any(condition.name == DELAY.name for condition in lm.conditioners):
        return lm
    if lm.whisper:
        raise ConfigError("data.delay is drawn: Whisper's decoder has no conditions, so give it one delay")
    return lm.model_copy(update={"conditioners": (*lm.conditioners, DELAY)})


def delayed(config: STTConfig, bounds: tuple[int, int]) -> STTConfig:
    """The configuration with the delay that is trained; of a drawn one, the middle, which its conditioner gets.

    It has no calibration, no shift of words and no curve that ends turns: those of the base are not of the model that
    is trained. `recordings` stays with the delay of the base, because the codec is that of the base too; with another
    or several it goes.
    """
    low, high = bounds
    frames = (low + high) // 2
    seconds = frames / config.codec.frame_rate
    conditioned = any(c.name == "delay" for c in config.lm.conditioners)
    if low != high and not conditioned:
        raise ConfigError('data.delay is drawn, so the LM needs a continuous conditioner named "delay"')
    values: dict[str, float | str] = {"delay": seconds} if conditioned else {}
    changed: dict[str, object] = {"delay_frames": frames, "delay_seconds": seconds, "condition_values": values}
    # Chosen for the weights before:
    changed |= {"confidence": None, "min_confidence": 0.0, "word_shift_seconds": 0.0}
    changed |= {"end_of_turn": None, "end_of_turn_above": END_OF_TURN_ABOVE}
    if conditioned or bounds != (config.delay_frames, config.delay_frames):
        changed["recordings"] = None
    return config.model_copy(update=changed)


def lost(base: STTConfig) -> list[str]:
    """What a user may miss that `delayed` leaves out, as remarks of a run."""
    if base.end_of_turn is None:
        return []
    return [
        "the curve that ends turns is not kept from model.base, because it is fitted to its pause heads: "
        "`slipstream train calibrate --turns` fits a new one"
    ]


def phones_of_run(run: RunOptions, model: ModelOptions, packs: list[Pack]) -> PhoneInventory:
    """The inventory of the run, or of the checkpoint it starts from; counted in the packs for the first run of all."""
    if (run.out / CHECKPOINT_FILE).exists():
        return read_phones(run.out / PHONES_FILE)
    if model.init is not None:
        return find_phones(model.init)
    return PhoneInventory.of(clip for pack in packs for clip in pack.clips)


def row_options(data: DataOptions, text: TextOptions, lm: LMConfig) -> RowOptions:
    """How the run's rows are laid out."""
    sentences = [text for path in data.texts for text in read_texts(path)]
    return RowOptions(data, text.delay, lm.pause_classes, sentences)


def wave_sampler(
    options: CodecRun | LMRun,
    packs: list[Pack],
    text: TextOptions,
    lm: LMConfig,
    phones: PhoneInventory | None = None,
) -> WaveSampler:
    """The run's rows of waveforms, augmented by `data.augment_samples`."""
    data = options.data
    effects, noise, speed = wave_effects(data.augment_samples or SampleAugment())
    return WaveSampler(
        packs,
        open_tokenizer(text.tokenizer, lm),
        row_options(data, text, lm),
        effects=effects,
        noise=noise,
        speed=speed,
        phones=phones,
        seed=options.run.seed,
    )


def mel_config(path: Path) -> MelConfig:
    """The log-mel front end in a run's TOML file, or that of the model it starts from."""
    model: ModelOptions = read_run(path, AnyRun).model
    origin = origin_of(model)
    codec = model.codec or (origin.config.codec if origin else None)
    if codec is None or codec.mel is None:
        raise ConfigError(f"{path}: model.codec.mel is missing, so its codec takes samples, not frames")
    return codec.mel
