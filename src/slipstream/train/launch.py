"""From a run's options to a run: the model, the rows, the task, the processes, and what comes out at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from slipstream.backends.torch.build import build_codec, build_lm
from slipstream.backends.torch.layers import Transformer
from slipstream.backends.torch.lm import LM, PauseHeads
from slipstream.backends.torch.mimi import Mimi
from slipstream.backends.torch.whisper import WhisperEncoder
from slipstream.checkpoints.checkpoint import Checkpoint, load_checkpoint
from slipstream.checkpoints.sources import Sources, resolve
from slipstream.data.augment import WaveAugment
from slipstream.data.packs import Pack
from slipstream.data.phones import PhoneInventory
from slipstream.data.spectral import SpectralAugment
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import CodecConfig, LMConfig, MelConfig, STTConfig
from slipstream.model.text import Tokenizer
from slipstream.train.adversary import Discriminator
from slipstream.train.artifacts import export_codec, export_lm, export_model
from slipstream.train.estimate import estimate
from slipstream.train.loop import CHECKPOINT_FILE, DTYPES, Trainer
from slipstream.train.lora import add_lora, merge_lora
from slipstream.train.model import SpeechModel
from slipstream.train.options import AnyRun, CodecRun, DataOptions, LMRun, ModelOptions, RunOptions, read_run
from slipstream.train.parallel import Task
from slipstream.train.reconstruction import CropSampler, ReconstructionTask, WaveCodec
from slipstream.train.sampler import RowOptions, RowSampler, TokenSampler
from slipstream.train.speech import (
    PHONES_FILE,
    copy_training_part,
    find_phones,
    read_phones,
    read_speech_weights,
    write_phones,
    write_training_part,
)
from slipstream.train.tasks import JointTask, PhoneTask, TextTask

Report = Callable[[str], None]
DEFAULT_DELAY = 6


def run_codec(options: CodecRun, report: Report = print) -> Path:
    """Train a log-mel codec by its phones, or a waveform codec by reconstruction; gives the last checkpoint's path.

    Resumes what is in `run.out`.
    """
    with _processes(options.run):
        packs = [Pack(path) for path in options.data.packs]
        if options.model.codec is not None and options.model.codec.has_decoder:
            return _run_reconstruction(options, options.model.codec, packs, report)
        if options.discriminator is not None or options.data.augment_samples is not None:
            raise ConfigError("discriminator and data.augment_samples are for a waveform codec: this one hears log-mel")
        model, sampler, _ = _speech(options, packs)
        write_phones(sampler.phones, options.run.out)
        path = _run(PhoneTask(model, sampler, options.loss), options.run, report, sampler.remarks())
        if _first():
            export_codec(model.codec, options.run.out / "codec")
            write_training_part(model, sampler.phones, options.run.out / "codec")
        return path


def run_lm(options: LMRun, report: Report = print) -> Path:
    """Train an LM, with its codec or alone, and export the model; gives the exported folder.

    Resumes what is in `run.out`. The model is written to `run.out/model`.
    """
    with _processes(options.run):
        if options.train_codec:
            return _run_joint(options, report)
        return _run_text(options, report)


def _run_reconstruction(options: CodecRun, config: CodecConfig, packs: list[Pack], report: Report) -> Path:
    if options.model.init is not None:
        raise ConfigError("model.init: a waveform codec starts from nothing, or goes on from what is in run.out")
    phones = _phones(options.run, options.model, packs)
    torch.manual_seed(options.run.seed)
    data, seed = options.data, options.run.seed
    augment = WaveAugment(**data.augment_samples.model_dump()) if data.augment_samples else None
    sampler = CropSampler(packs, phones, config, data.weights, data.seconds, seed, augment)
    judge = Discriminator(**options.discriminator.model_dump()) if options.discriminator else None
    write_phones(phones, options.run.out)
    task = ReconstructionTask(WaveCodec(config, len(phones), judge), sampler, options.loss, options.quantiser)
    path = _run(task, options.run, report)
    if _first():
        export_codec(task.module.codec, options.run.out / "codec")
    return path


def _run_joint(options: LMRun, report: Report) -> Path:
    model, sampler, text = _speech(options, [Pack(path) for path in options.data.packs])
    if not sampler.timed:
        raise ConfigError(
            "no clip of data.packs has word times to teach the text by: `slipstream data align` finds them"
        )
    write_phones(sampler.phones, options.run.out)
    remarks = sampler.remarks()
    if sampler.untimed:
        remarks.append(f"{sampler.untimed} clips have no word times, and teach phones alone: `slipstream data align`")
    _run(JointTask(model, sampler, options.loss, options.quantiser), options.run, report, remarks)
    folder = options.run.out / "model"
    if _first():
        export_model(model, model.config, text.tokenizer, folder)
        write_training_part(model, sampler.phones, folder)
    return folder


def _speech(options: CodecRun | LMRun, packs: list[Pack]) -> tuple[SpeechModel, RowSampler, _TextOptions]:
    """What a run of phones or text trains, where its rows come from, and what it writes."""
    phones = _phones(options.run, options.model, packs)
    text = _text_options(options.data, options.model)
    model = _speech_model(options.model, text, len(phones), options.run.seed)
    rows = _row_options(options.data, text, model.config.lm)
    return model, RowSampler(packs, phones, _open(text, model.config.lm), rows, seed=options.run.seed), text


def _run_text(options: LMRun, report: Report) -> Path:
    base = load_checkpoint(str(options.model.base))
    config = base.config
    if options.model.lm is not None:
        config = config.model_copy(update={"lm": options.model.lm})
    if options.model.pause_heads is not None:
        lm_config = config.lm.model_copy(update={"pause_heads": options.model.pause_heads})
        config = config.model_copy(update={"lm": lm_config})
    text = _text_options(options.data, options.model)
    config = _delayed(config, text.delay)
    torch.manual_seed(options.run.seed)
    lm = LM(config.lm) if options.model.lm is not None else _based_lm(base, config.lm, options)
    packs = [Pack(path) for path in options.data.packs]
    rows = _row_options(options.data, text, config.lm)
    sampler = TokenSampler(packs, _open(text, config.lm), rows, seed=options.run.seed)
    task = TextTask(lm, sampler, options.loss, options.quantiser.codebook_dropout)
    _run(task, options.run, report, sampler.remarks())
    folder = options.run.out / "model"
    if _first():
        merge_lora(lm)
        export_lm(lm, Checkpoint(config, {}, base.codec, text.tokenizer), folder)
        if options.pause_heads_only:
            copy_training_part(str(options.model.base), folder)
    return folder


def _based_lm(base: Checkpoint, config: LMConfig, options: LMRun) -> LM:
    """The base's LM, as much of it learning as the run asks for; what stays as it is, is kept in the run's type."""
    frozen = options.lora is not None or options.pause_heads_only
    weights = dict(base.lm)
    if config.pause_heads != base.config.lm.pause_heads:
        heads = PauseHeads(config.pause_heads, config.pause_classes, config.transformer.dim)
        weights["pause_heads.weight"] = heads.weight.detach().numpy()
    lm = build_lm(config, weights, dtype=DTYPES[options.run.dtype] if frozen else torch.float32)
    lm.requires_grad_(not frozen)
    if options.pause_heads_only:
        if lm.pause_heads is None:
            raise ConfigError(f"{options.model.base} has no pause heads: give their number, model.pause_heads")
        lm.pause_heads.requires_grad_(True)
    if options.lora is not None:
        add_lora(lm, options.lora.rank, options.lora.scaling)
    return lm.train()


def _run(task: Task, options: RunOptions, report: Report, remarks: Sequence[str] = ()) -> Path:
    if options.checkpoint_layers:
        for module in task.module.modules():
            if isinstance(module, Transformer | WhisperEncoder):
                module.checkpointing = True
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f'run.device = "{options.device}", but PyTorch finds no CUDA device here; there is "cpu"')
    trainer = Trainer(task, options, report if _first() else _silent)
    for remark in remarks:
        trainer.report(remark)
    trainer.report(str(estimate(task, options, trainer.share)))
    return trainer.run()


def _speech_model(model: ModelOptions, text: _TextOptions, phones: int, seed: int) -> SpeechModel:
    codec, lm = _shapes(model)
    if codec.mel is None:
        raise ConfigError("model.codec.mel: the phone recipe trains a log-mel front end")
    torch.manual_seed(seed)
    trained = SpeechModel(_delayed(STTConfig(codec=codec, lm=lm, delay_seconds=0, delay_frames=0), text.delay), phones)
    if model.init is not None:
        weights = read_speech_weights(model.init)
        ours = trained.state_dict()
        taken = {name: w for name, w in weights.items() if name in ours and ours[name].shape == w.shape}
        if not taken:
            raise CheckpointError(f"{model.init}: none of its weights fits this model")
        trained.load_state_dict(taken, strict=False)
    return trained


def _shapes(model: ModelOptions) -> tuple[CodecConfig, LMConfig]:
    """The shapes that a run asks for, or else those of the model it starts from."""
    if model.codec is not None and model.lm is not None:
        return model.codec, model.lm
    origin = _origin(model)
    if origin is None:
        raise ConfigError("model.codec and model.lm: both are needed to train a codec, or a model.init that has them")
    return model.codec or origin.config.codec, model.lm or origin.config.lm


def _origin(model: ModelOptions) -> Sources | None:
    """The model that a run starts from, if it starts from one and not from a training checkpoint."""
    start = model.base or model.init
    return None if start is None or Path(start).is_file() else resolve(start)


@dataclass(frozen=True, slots=True)
class _TextOptions:
    """What a run writes: its vocabulary, and the bounds of its delay in frames."""

    tokenizer: Path
    delay: tuple[int, int]


def _text_options(data: DataOptions, model: ModelOptions) -> _TextOptions:
    """As asked for, or else as in the model that the run starts from."""
    origin = _origin(model)
    tokenizer = data.tokenizer or (origin.tokenizer if origin else None)
    if tokenizer is None:
        raise ConfigError("data.tokenizer: give a SentencePiece model, or start from a model that has one")
    delay = data.delay or (origin.config.delay_frames if origin else DEFAULT_DELAY)
    return _TextOptions(tokenizer, (delay, delay) if isinstance(delay, int) else delay)


def _open(text: _TextOptions, lm: LMConfig) -> Tokenizer:
    tokenizer = Tokenizer(text.tokenizer)
    if tokenizer.vocab_size != lm.text_vocab:
        raise ConfigError(f"{text.tokenizer} has {tokenizer.vocab_size} tokens, the LM's text_vocab is {lm.text_vocab}")
    return tokenizer


def _delayed(config: STTConfig, bounds: tuple[int, int]) -> STTConfig:
    """The configuration with the delay that is trained; of a drawn one, the middle, which its conditioner is told."""
    low, high = bounds
    frames = (low + high) // 2
    seconds = frames / config.codec.frame_rate
    conditioned = any(c.name == "delay" for c in config.lm.conditioners)
    if low != high and not conditioned:
        raise ConfigError('data.delay is drawn, so the LM needs a continuous conditioner named "delay" to be told it')
    values: dict[str, float | str] = {"delay": seconds} if conditioned else {}
    return config.model_copy(update={"delay_frames": frames, "delay_seconds": seconds, "condition_values": values})


def _phones(run: RunOptions, model: ModelOptions, packs: list[Pack]) -> PhoneInventory:
    """The inventory of the run, or of the checkpoint it starts from; counted in the packs for the first run of all."""
    if (run.out / CHECKPOINT_FILE).exists():
        return read_phones(run.out / PHONES_FILE)
    if model.init is not None:
        return find_phones(model.init)
    return PhoneInventory.of(clip for pack in packs for clip in pack.clips)


def _row_options(data: DataOptions, text: _TextOptions, lm: LMConfig) -> RowOptions:
    return RowOptions(
        seconds=data.seconds,
        weights=data.weights,
        delay=text.delay,
        gaps=data.gaps,
        gap_shares=data.gap_shares,
        same_language=data.same_language,
        text_mask=data.text_mask,
        plain=data.plain_text,
        pause_classes=lm.pause_classes,
        augment=SpectralAugment(**data.augment.model_dump()),
        crop=data.crop,
    )


@contextmanager
def _processes(options: RunOptions) -> Iterator[None]:
    """Join the other processes when torchrun started this one."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    if options.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if options.device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _silent(line: str) -> None:
    pass


def load_codec(model: str) -> Mimi:
    """The codec of a checkpoint, to make tokens with."""
    checkpoint = load_checkpoint(model)
    return build_codec(checkpoint.config.codec, checkpoint.codec)


def mel_config(path: Path) -> MelConfig:
    """The log-mel front end that a run's TOML file asks for, or that of the model it starts from."""
    model: ModelOptions = read_run(path, AnyRun).model
    origin = _origin(model)
    codec = model.codec or (origin.config.codec if origin else None)
    if codec is None or codec.mel is None:
        raise ConfigError(f"{path}: model.codec.mel is missing, so its codec hears samples, not frames")
    return codec.mel
