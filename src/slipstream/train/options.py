"""Configurations of a training run: one TOML file, every key of it described here, an unknown one an error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from slipstream.data.augment import Share
from slipstream.data.options import DataOptions, SampleAugment, Weight
from slipstream.data.spectral import SpectralAugment
from slipstream.errors import ConfigError
from slipstream.model.config import CodecConfig, LMConfig, Positive, SEANetConfig
from slipstream.schema import Options, parse, read_toml


def _in_order(phases: tuple[PhaseOptions, ...]) -> tuple[PhaseOptions, ...]:
    ends = [phase.until for phase in phases]
    if phases and (sorted(set(ends)) != ends or ends[-1] != 1):
        raise ValueError(f"until is {', '.join(f'{end:g}' for end in ends)}: it must rise, to 1 in the last phase")
    return phases


def _device(name: str) -> str:
    import torch  # not needed to import this module

    try:
        torch.device(name)
    except RuntimeError:
        raise ValueError(f"{name!r} is not a device of PyTorch: give cpu, cuda, cuda:1 or mps") from None
    return name


class RunOptions(Options):
    """How a run goes, whatever it trains.

    out: folder for checkpoints, the log and the exported model.
    seed: of the weights, the order of rows, and every draw.
    steps / minutes: the length of the run, by optimiser steps or by the clock; exactly one of them.
    rows: rows in one optimiser step, over all processes and accumulated batches.
    accumulate: batches whose gradients are summed before a step; divides `rows` by processes.
    dtype: what the modules compute in; the optimiser's weights are always float32. "auto": that of the device's fastest
    products (`slipstream.train.precision`), or what the run began in if it resumes.
    compile: compile the layers of Transformers and Whisper models with `torch.compile`, in the first steps. It needs a
    C++ compiler.
    checkpoint_layers: recompute the Transformers' activations in the backward pass, for less memory.
    learning_rate, warmup, decay: peak rate; the shares of the run over which it rises, and falls to zero.
    encoder_rate: factor on the rate of a codec's encoder trained with an LM; 0 keeps the encoder as it is.
    rates: factors on the rate of the weights whose names match a pattern, as `{"lm.transformer.*" = 0.2}`. Of several
    patterns that match, the last counts; 0 keeps the weights as they are.
    average: share by which a moving average of the weights keeps its old value at each step; the run's model is the
    average. 0 takes the last weights.
    optimizer: "adamw", or "muon" for the Transformers' matrices with AdamW for the rest.
    weight_decay, betas, clip: of the optimiser; `clip` is the largest norm of a step's gradient.
    shard: cut weights, gradients and the optimiser's state into a part for each process (FSDP2), for a model that does
    not fit one device; with "adamw" only.
    checkpoint_every, log_every: optimiser steps between checkpoints, and between lines of the log.
    keep: how many earlier checkpoints stay, as `step-N.pt` next to `last.pt`.
    workers: processes that draw and augment rows; 0: a thread of the training process does.
    trackers: "tensorboard", "wandb", "mlflow", or `module:callable` of your own (`slipstream.train.trackers`).
    device: "cpu", "cuda", ...; with torchrun each process takes the CUDA device of its rank.
    """

    out: Path
    seed: int = 0
    steps: Positive | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    rows: Positive = 8
    accumulate: Positive = 1
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    compile: bool = False
    checkpoint_layers: bool = False
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup: Share = 0.02
    decay: Share = 0.4
    encoder_rate: Annotated[float, Field(ge=0)] = 1.0
    rates: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: Annotated[float, Field(gt=0)] = 1.0
    shard: bool = False
    checkpoint_every: Positive = 200
    log_every: Positive = 25
    keep: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0)] = 0
    trackers: tuple[str, ...] = ("tensorboard",)
    device: Annotated[str, AfterValidator(_device)] = "cpu"

    @model_validator(mode="after")
    def _one_length(self) -> RunOptions:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give the run's length by exactly one of steps and minutes")
        return self

    @model_validator(mode="after")
    def _muon_needs_whole_matrices(self) -> RunOptions:
        if self.shard and self.optimizer == "muon":
            raise ValueError("muon orthogonalises whole matrices, which shard cuts up: use the optimizer adamw")
        return self


class LossOptions(Options):
    """Weights of the losses.

    frame_phones, ctc: of phones at the codec's 25 Hz: per frame, and as a sequence.
    spoken: of the text token that is being spoken, read off the quantised latent by a head that is not part of a model
    (with a Whisper encoder).
    distil: of a teacher's features, in a run of `train lm` with `[distil]`.
    text: of the text stream, in which PAD weighs `pad`. pause: of the pause heads. commitment: of the quantiser.
    phones_to: share to which the two phone losses fall by the middle of the run.
    base: of the divergence from what the model that the run starts from would write, on the datasets `data.replay`.
    spectral, waveform: of what a decoder writes: log-mel bands at several resolutions, and samples.
    adversarial, features: of a decoder against its discriminator: hinge loss, and feature matching.
    """

    frame_phones: float = 1.0
    ctc: float = 1.0
    spoken: float = 0.0
    distil: float = 1.0
    text: float = 1.0
    pad: float = 1.0
    pause: float = 0.15
    commitment: float = 0.1
    phones_to: Share = 1.0
    base: Annotated[float, Field(ge=0)] = 0.0
    spectral: Annotated[float, Field(ge=0)] = 1.0
    waveform: Annotated[float, Field(ge=0)] = 1.0
    adversarial: float = 1.0
    features: float = 1.0


class QuantiserOptions(Options):
    """How the quantiser comes in.

    start: step at which k-means places its codebooks; before it the LM gets the latent itself.
    share: rows that are quantised from then on; from `all_from` (a share of the run) it rises to every row within a
    fifth of the run. codebook_dropout: rows of which only the first codebooks, of a drawn number, are used.
    """

    start: Annotated[int, Field(ge=0)] = 200
    share: Share = 0.5
    all_from: Share = 0.5
    codebook_dropout: Share = 0.0


class ModelOptions(Options):
    """The model: its codec and LM from scratch, or the checkpoint folder `base` to start from.

    init: what a run of phones or text left, whose weights are taken where names and shapes agree: its `last.pt`, or its
    `model` folder or a built-in model, which give the shapes too. `whisper:FOLDER_OR_NAME`: the encoder of a Whisper
    checkpoint, in the format of Hugging Face, OpenAI (safetensors) or CTranslate2.
    decoder: the Whisper checkpoint, written as in `init`, whose text decoder the LM starts as. `lm.whisper` is needed,
    with 1 vector per frame or as many as the encoder has features in one.
    pause_heads: how many the LM is to have, when not as many as in `base`.
    """

    codec: CodecConfig | None = None
    lm: LMConfig | None = None
    base: str | None = None
    init: str | None = None
    decoder: str | None = None
    pause_heads: Annotated[int, Field(ge=1, le=4)] | None = None


class LoraOptions(Options):
    """Low-rank adapters on the LM's linear layers (arXiv:2106.09685).

    rank: of each adapter. scaling: the factor on its output.
    targets: the layers that get one. embeddings: train the text embeddings and the text head in full instead.
    pause_heads: train the pause heads in full. Rows of new pieces (`data.tokenizer`) are always trained in full.
    """

    rank: Positive = 32
    scaling: float = 2.0
    targets: Annotated[tuple[Literal["attention", "feed_forward", "text_head"], ...], Field(min_length=1)] = (
        "attention",
        "feed_forward",
        "text_head",
    )
    embeddings: bool = False
    pause_heads: bool = False


class DistilOptions(Options):
    """Distillation of a Whisper encoder into the codec's, alone (`train codec`) or next to the text (`train lm`).

    teacher: a Whisper checkpoint, as in `model.init`. text: share of the loss of the text's tokens that the teacher's
    text decoder gives in `train lm`, instead of the labels; `data.tokenizer` has then Whisper's pieces.
    """

    teacher: str
    text: Share = 0.0


class DiscriminatorOptions(Options):
    """A multi-scale STFT discriminator (arXiv:2210.13438).

    windows: of its spectrograms, in samples. filters: channels of its convolutions. start: step from which the codec
    learns against it.
    """

    windows: tuple[Positive, ...] = (2048, 1024, 512, 256, 128)
    filters: Positive = 32
    start: Annotated[int, Field(ge=0)] = 0


class DecoderOptions(Options):
    """The decoder of the codec of `model.base`, whose encoder and codebooks stay as they are.

    shape: for a codec with a log-mel front end: SEANet and the Transformer of a new decoder; by default those of the
    published Mimi, or the decoder that the codec has. fresh: start from random weights, not those of `model.base`.
    """

    shape: SEANetConfig | None = None
    fresh: bool = False


class PhaseOptions(Options):
    """A part of a run (`[[phase]]`), in the order of the file. What it does not set is as in the rest of the file.

    until: share of the run at which it ends; 1 in the last one. rate: factor on the scheduled learning rate, or its
    first and last value, between which it moves. encoder_rate: as `run.encoder_rate`; 0 keeps the encoder as it is.
    The other keys replace those of `[data]`.
    """

    until: Annotated[float, Field(gt=0, le=1)]
    rate: float | tuple[float, float] = 1.0
    encoder_rate: Annotated[float, Field(ge=0)] | None = None
    weights: Annotated[dict[str, Weight], Field(min_length=1)] | None = None
    crop: dict[str, Share] | None = None
    text_share: Share | None = None
    text_mask: Share | None = None
    text_errors: Share | None = None
    augment: SpectralAugment | None = None
    augment_samples: SampleAugment | None = None

    def data_changes(self) -> dict[str, Any]:
        """The keys of `[data]` that the phase replaces."""
        own = {"until", "rate", "encoder_rate"}
        return {key: value for key, value in self if key not in own and value is not None}


Phases = Annotated[tuple[PhaseOptions, ...], AfterValidator(_in_order)]


class AnyRun(BaseModel):
    """The model of any run's file; nothing else of it is looked at."""

    model: ModelOptions


class CodecRun(Options):
    """`slipstream train codec`: Whisper's encoder by distillation, a log-mel codec by its phones, a waveform codec by
    reconstruction, or the decoder of a codec.

    distil: what a codec with Whisper's encoder learns from.
    decoder: train only the decoder of the codec of `model.base`.
    discriminator: a judge that the waveform codec or the decoder learns against.
    """

    run: RunOptions
    model: ModelOptions
    data: DataOptions
    loss: LossOptions = LossOptions()
    quantiser: QuantiserOptions = QuantiserOptions()
    distil: DistilOptions | None = None
    decoder: DecoderOptions | None = None
    discriminator: DiscriminatorOptions | None = None
    phase: Phases = ()

    @property
    def discriminator_start(self) -> int:
        """The step from which a waveform codec or a decoder learns against its discriminator, if it has one."""
        return self.discriminator.start if self.discriminator else 0

    @model_validator(mode="after")
    def _starts_from_what_is_read(self) -> CodecRun:
        if self.decoder is not None and (self.model.model_fields_set != {"base"} or self.model.base is None):
            raise ValueError("decoder: [model] takes base alone, the model or codec whose tokens it decodes")
        if self.decoder is not None and (self.distil is not None or self.phase):
            raise ValueError("decoder: leave out distil and phase")
        if self.decoder is None and self.model.base is not None:
            raise ValueError(
                "model.base keeps a codec as it is, for `train lm` and [decoder]: to train one from there, model.init"
            )
        if self.distil is not None and self.distil.text:
            raise ValueError("distil.text teaches an LM: leave it out, or use it in `train lm`")
        return self


class LMRun(Options):
    """`slipstream train lm`: the text stream, with the codec trained too (`train_codec`) or frozen.

    pause_heads_only: everything else stays as it is in `model.base`, the words that it writes included.
    lora: train adapters only, on the checkpoint that `model.base` names.
    lookaheads: positions that each layer of a trained Whisper encoder sees ahead, one drawn for each step, so that the
    model runs with each of them; those of the model by default.
    """

    run: RunOptions
    model: ModelOptions
    data: DataOptions
    loss: LossOptions = LossOptions()
    quantiser: QuantiserOptions = QuantiserOptions()
    train_codec: bool = False
    pause_heads_only: bool = False
    distil: DistilOptions | None = None
    lora: LoraOptions | None = None
    lookaheads: tuple[Annotated[int, Field(ge=0)], ...] = ()
    phase: Phases = ()

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> LMRun:
        model = self.model
        if self.train_codec and model.base is not None:
            raise ValueError("model.base keeps its codec as it is: with train_codec, start from model.init")
        if self.train_codec and (self.lora is not None or self.pause_heads_only or model.pause_heads is not None):
            raise ValueError("lora, pause_heads_only and model.pause_heads are for model.base: leave train_codec out")
        if self.lookaheads and not self.train_codec:
            raise ValueError("lookaheads are for train_codec = true: this run keeps the codec of model.base")
        if self.distil is not None and not self.train_codec:
            raise ValueError("distil teaches the codec's encoder: set train_codec = true, or leave it out")
        if not self.train_codec and model.base is None:
            raise ValueError(
                "model.base is missing: the LM learns with that model's codec; or set train_codec = true to train "
                "a codec with it"
            )
        if not self.train_codec and model.init is not None:
            raise ValueError("model.init is for runs with train_codec = true: this one starts from model.base")
        phases = any(phase.encoder_rate is not None for phase in self.phase)
        if not self.train_codec and (phases or self.run.encoder_rate != 1):
            raise ValueError("encoder_rate is for train_codec = true: this run keeps the codec of model.base")
        if self.lora is not None and self.pause_heads_only:
            raise ValueError("pause_heads_only leaves all else as it is: leave lora out")
        if (self.lora is not None or self.pause_heads_only) and model.lm is not None:
            raise ValueError("model.lm is an LM from nothing, but this run changes that of model.base: leave it out")
        return self

    @model_validator(mode="after")
    def _keeps_what_there_is(self) -> LMRun:
        if self.loss.base and (self.model.lm is not None or (self.model.base or self.model.init) is None):
            raise ValueError(
                "loss.base keeps what a model can do: start from one (model.base, model.init), not model.lm"
            )
        return self

    @model_validator(mode="after")
    def _the_quantiser_comes_in(self) -> LMRun:
        start, steps = self.quantiser.start, self.run.steps
        if self.train_codec and steps is not None and start >= steps:
            raise ValueError(
                f"quantiser.start = {start}, but the run has {steps} steps: no codebook would be placed; start = 0 "
                "resumes from a model that has them"
            )
        return self


class TTSModelOptions(Options):
    """The model that speaks: `base`, a text-to-speech model to go on from, or a new one of `codec` and `lm`.

    codec: a model, or a codec's folder, whose codec makes the audio; it stays as it is. lm: the shapes, with a depth
    Transformer. audio_delay: seconds by which the audio is behind the text. second_stream_ahead: words by which a
    second text stream is ahead; it needs `lm.demux_text`.
    """

    base: str | None = None
    codec: str | None = None
    lm: LMConfig | None = None
    audio_delay: Annotated[float, Field(ge=0)] = 1.28
    second_stream_ahead: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_start(self) -> TTSModelOptions:
        given = self.model_fields_set - {"base"}
        if self.base is not None and given:
            raise ValueError(f"model.base has all of the model: leave out {', '.join(sorted(given))}")
        if self.base is None and (self.codec is None or self.lm is None):
            raise ValueError("give model.base, or model.codec and model.lm for a new model")
        return self


class TTSLossOptions(Options):
    """Weights of the losses of a model that speaks.

    text: of when a word begins. semantic: of the semantic codebooks, relative to 1 for each of the others; together
    they weigh 1. The default is that of Moshi (arXiv:2410.00037).
    """

    text: Annotated[float, Field(ge=0)] = 1.0
    semantic: Annotated[float, Field(gt=0)] = 100.0


_OF_SPEECH = ("packs", "weights", "tokenizer", "seconds", "gaps", "gap_shares", "crop", "plain_text", "valid")
_PHASE_OF_SPEECH = ("until", "rate", "weights", "crop")


class SpeechDataOptions(DataOptions):
    """What a run of speech reads, with the pauses between sentences that a reader makes."""

    gaps: tuple[tuple[float, float], ...] = ((0.1, 0.8),)
    gap_shares: tuple[Weight, ...] = (1.0,)


class TTSRun(Options):
    """`slipstream train tts`: a model that reads a text aloud, from packs of codec tokens whose words have times.

    condition_dropout: share of rows without text and conditions, for guidance.
    phase: takes `until`, `rate`, `weights` and `crop`.
    """

    run: RunOptions
    model: TTSModelOptions
    data: SpeechDataOptions
    loss: TTSLossOptions = TTSLossOptions()
    condition_dropout: Share = 0.1
    phase: Phases = ()

    @model_validator(mode="after")
    def _reads_whole_recordings(self) -> TTSRun:
        if unused := sorted(self.data.model_fields_set - set(_OF_SPEECH)):
            raise ValueError(f"data.{unused[0]} is not for speech: [data] takes {', '.join(_OF_SPEECH)}")
        of_phases = {key for phase in self.phase for key in phase.model_fields_set}
        if unused := sorted(of_phases - set(_PHASE_OF_SPEECH)):
            raise ValueError(f"phase.{unused[0]} is not for speech: [[phase]] takes {', '.join(_PHASE_OF_SPEECH)}")
        if self.data.valid is not None and self.data.valid.manifest is not None:
            raise ValueError("data.valid.manifest measures word errors of a transcription: give data.valid.packs")
        return self


def read_run(path: Path, kind: type[Any]) -> Any:
    """Read a run's TOML file. Relative paths in it are relative to the current folder.

    Raises `ConfigError` that names every key that is unknown or wrong.
    """
    raw = read_toml(path)
    try:
        return parse(kind, raw, str(path))
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(str(path)) else f"{path}: {message}") from error
