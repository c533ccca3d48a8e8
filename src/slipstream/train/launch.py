"""Start a run from its options: the model, the rows, the task, the processes, and the exported result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import nn

from slipstream.bundle import ModelBundle
from slipstream.checkpoints.checkpoint import Checkpoint, read_codec
from slipstream.checkpoints.whisper import read_whisper
from slipstream.data.options import DataOptions
from slipstream.data.pack_codec import check_tokens
from slipstream.data.packs import Pack
from slipstream.data.phones import PhoneInventory
from slipstream.data.rows import RowOptions, Sampler
from slipstream.data.sampler import RowSampler, TokenSampler
from slipstream.data.speech_rows import SpeechSampler
from slipstream.errors import ConfigError
from slipstream.model.config import CodecConfig
from slipstream.nn.build import build_codec
from slipstream.nn.decoder import WhisperDecoderLayer
from slipstream.nn.layers import Transformer, TransformerLayer
from slipstream.nn.lm import LM
from slipstream.nn.mel import LogMel
from slipstream.nn.mimi import Mimi
from slipstream.nn.whisper import WhisperEncoder, WhisperLayer
from slipstream.train.adversary import discriminator_of
from slipstream.train.artifacts import (
    export_codec,
    export_decoder,
    export_distilled,
    export_lm,
    export_model,
    export_speech,
)
from slipstream.train.card import write_card
from slipstream.train.decoder import DecoderTask, model_around, start_decoder
from slipstream.train.distil import Distilled, DistilTask, Teacher, start_distilled
from slipstream.train.estimate import estimate
from slipstream.train.joint import WhisperJointTask, frame_features
from slipstream.train.keep import old_lm, old_model
from slipstream.train.loop import Trainer
from slipstream.train.lora import based_lm, merged_weights, write_adapter
from slipstream.train.model import SpeechModel, start_audio_embeddings
from slipstream.train.options import CodecRun, DecoderOptions, DistilOptions, LMRun, RunOptions, TTSRun
from slipstream.train.parallel import Task, dtype_of, is_first, processes
from slipstream.train.phases import Phases, plan
from slipstream.train.precision import settled
from slipstream.train.reconstruction import CropSampler, ReconstructionTask, WaveCodec
from slipstream.train.rehearsal import Rehearsal, write_rows
from slipstream.train.setup import (
    TextOptions,
    delayed,
    grown,
    lost,
    new_speech_model,
    open_tokenizer,
    phones_of_run,
    row_options,
    shapes_of,
    text_options,
    undelayed,
    wave_sampler,
    with_drawn_delay,
)
from slipstream.train.speech import copy_training_part, find_codec, write_phones, write_training_part
from slipstream.train.tasks import JointTask, PhoneTask, TextTask
from slipstream.train.text_teacher import read_text_teacher
from slipstream.train.tts import SpeakTask, start_speech
from slipstream.train.validation import Check, Measure, Validation, held_out_loss
from slipstream.train.whisper_start import start_from

Report = Callable[[str], None]
Run = TypeVar("Run", CodecRun, LMRun, TTSRun)


def run_codec(options: CodecRun, report: Report = print) -> Path:
    """Train a log-mel codec by its phones, a waveform codec by reconstruction, or a decoder.

    Resumes the run in `run.out`. Returns the path of the last checkpoint.
    """
    with processes(options.run):
        options = _settled(options, report)
        packs = [Pack(path) for path in options.data.packs]
        if options.distil is not None:
            return _run_distil(options, options.distil, packs, report)
        if options.decoder is not None:
            return _run_decoder(options, options.decoder, packs, report)
        if options.model.codec is not None and options.model.codec.reads_samples:
            return _run_reconstruction(options, options.model.codec, packs, report)
        if options.discriminator is not None or options.data.augment_samples is not None:
            raise ConfigError(
                "discriminator and data.augment_samples are for a waveform codec or a decoder: this one takes log-mel "
                "frames"
            )
        model, sampler, _ = _speech(options, packs)
        write_phones(sampler.phones, options.run.out)
        task = PhoneTask(model, sampler, options.loss)
        path = _run(
            task, options.run, report, sampler.remarks(), _check(options, task, sampler), _plan(options, sampler)
        )
        if is_first():
            export_codec(model.codec, options.run.out / "codec")
            write_training_part(model, sampler.phones, options.run.out / "codec")
        return path


def run_lm(options: LMRun, report: Report = print, measure: Measure | None = None) -> Path:
    """Train an LM, with its codec or alone, and export the model to `run.out/model`. Returns this folder.

    Resumes the run in `run.out`. For `data.valid`, `measure` is called with a folder of the current model; the best
    model is kept in `run.out/best`.
    """
    with processes(options.run):
        options = _settled(options, report)
        if options.train_codec:
            return _run_joint(options, report, measure)
        return _run_text(options, report, measure)


def run_tts(options: TTSRun, report: Report = print) -> Path:
    """Train a text-to-speech model, and export it to `run.out/model`. Returns this folder.

    Resumes the run in `run.out`.
    """
    with processes(options.run):
        options = _settled(options, report)
        lm, beside = start_speech(options)
        start = options.model.base or options.model.codec
        codec = build_codec(beside.config.codec, beside.codec)
        packs = _token_packs(options.data, codec, str(start), beside.config.lm.audio_vocab)
        tokenizer = open_tokenizer(beside.tokenizer, beside.config.lm)
        delay = beside.config.delay_steps
        rows = RowOptions(options.data, (delay, delay))
        sampler = SpeechSampler(packs, tokenizer, rows, beside.config, seed=options.run.seed)
        task = SpeakTask(lm, sampler, options.loss, options.condition_dropout)

        def export(folder: Path) -> None:
            export_speech(lm, beside, folder)
            write_card(folder, packs, _all_weights(options), start, "text-to-speech")

        check = _check(options, task, sampler, export=export)
        _run(task, options.run, report, sampler.remarks(), check, _plan(options, sampler))
        folder = options.run.out / "model"
        if is_first():
            export(folder)
        return folder


def _settled(options: Run, report: Report) -> Run:
    return options.model_copy(update={"run": settled(options.run, report)})


def _check(
    options: CodecRun | LMRun | TTSRun,
    task: Task,
    sampler: Sampler | CropSampler,
    measure: Measure | None = None,
    export: Callable[[Path], None] | None = None,
) -> Check | None:
    """The measurements of `data.valid`; without `measure` or a manifest, only the held-out loss."""
    valid, run = options.data.valid, options.run
    if valid is None:
        return None
    loss = None
    if valid.packs:
        held_out = sampler.held_out([Pack(path) for path in valid.packs])
        loss = partial(held_out_loss, task, held_out, valid.rows, max(1, run.rows // run.accumulate))
    if loss is None and (measure is None or export is None):
        raise ConfigError("data.valid.packs is missing: a codec is measured by its loss on held-out packs")
    words = measure if valid.manifest is not None else None
    validation = Validation(valid, run.out, loss, words, export)
    return Check(valid.every, validation, validation.exhausted)


def _plan(options: CodecRun | LMRun | TTSRun, sampler: Sampler) -> Phases | None:
    return plan(options.phase, sampler, options.data)


def _all_weights(options: LMRun | TTSRun) -> dict[str, float]:
    """The weight of each dataset, or that of the first phase that draws it."""
    weights: dict[str, float] = {}
    for drawn in (options.data.weights, *(phase.weights or {} for phase in options.phase)):
        weights = drawn | weights
    return weights


def _run_reconstruction(options: CodecRun, config: CodecConfig, packs: list[Pack], report: Report) -> Path:
    if options.phase:
        raise ConfigError("phase: not for a waveform codec: leave it out")
    if options.model.init is not None:
        raise ConfigError("model.init: a waveform codec starts from scratch, or resumes the run in run.out")
    phones = phones_of_run(options.run, options.model, packs)
    torch.manual_seed(options.run.seed)
    data, seed = options.data, options.run.seed
    sampler = CropSampler(packs, phones, config, data.weights, data.seconds, seed, data.augment_samples)
    module = WaveCodec(config, len(phones), discriminator_of(options.discriminator))
    write_phones(phones, options.run.out)
    task = ReconstructionTask(module, sampler, options.loss, options.quantiser, options.discriminator_start)
    path = _run(task, options.run, report, check=_check(options, task, sampler))
    if is_first():
        export_codec(task.module.codec, options.run.out / "codec")
    return path


def _run_decoder(options: CodecRun, decoder: DecoderOptions, packs: list[Pack], report: Report) -> Path:
    data, base = options.data, str(options.model.base)
    module, frozen, tensors = start_decoder(options, decoder)
    beside = model_around(base)
    sampler = CropSampler(
        packs, None, frozen.config, data.weights, data.seconds, options.run.seed, data.augment_samples
    )
    task = DecoderTask(module, frozen, sampler, options.loss, options.quantiser, options.discriminator_start)

    def export(folder: Path) -> None:
        export_decoder(module, tensors, beside, folder)
        if beside is not None:
            copy_training_part(base, folder)
        write_card(folder, packs, data.weights, base)

    path = _run(task, options.run, report, check=_check(options, task, sampler, export=export))
    if is_first():
        export(options.run.out / ("codec" if beside is None else "model"))
    return path


def _run_distil(options: CodecRun, distil: DistilOptions, packs: list[Pack], report: Report) -> Path:
    text = text_options(options.data, options.model)
    codec, lm = shapes_of(options.model)
    if codec.whisper is None:
        raise ConfigError("model.codec.whisper: distillation trains Whisper's encoder")
    config = delayed(undelayed(codec, lm, text), text.delay)
    torch.manual_seed(options.run.seed)
    model = Distilled(config)
    start_distilled(model, options.model.init)
    sampler = wave_sampler(options, packs, text, lm)
    task = DistilTask(model, read_whisper(distil.teacher), sampler, options.loss, dtype_of(options.run))
    phones = PhoneInventory.of(clip for pack in packs for clip in pack.clips)
    write_phones(phones, options.run.out)
    path = _run(task, options.run, report, sampler.remarks(), _check(options, task, sampler), _plan(options, sampler))
    if is_first():
        task.place_codebooks()
        folder = options.run.out / "model"
        export_distilled(model, text.tokenizer, folder)
    return path


def _run_joint(options: LMRun, report: Report, measure: Measure | None) -> Path:
    if shapes_of(options.model)[0].whisper:
        return _run_whisper_joint(options, report, measure)
    if options.loss.base:
        raise ConfigError("loss.base is for a codec with Whisper's encoder, and for model.base: leave it out")
    model, sampler, text = _speech(options, [Pack(path) for path in options.data.packs])
    if not sampler.timed:
        raise ConfigError(
            "no clip of data.packs has word times to teach the text by: `slipstream data align` finds them"
        )
    write_phones(sampler.phones, options.run.out)
    remarks = sampler.remarks()
    if sampler.untimed:
        remarks.append(f"{sampler.untimed} clips have no word times, and teach phones alone: `slipstream data align`")

    def export(folder: Path) -> None:
        export_model(model, model.config, text.tokenizer, folder)
        write_training_part(model, sampler.phones, folder)

    task = JointTask(model, sampler, options.loss, options.quantiser)
    return _export_at_end(task, sampler, options, report, remarks, export, measure)


def _run_whisper_joint(options: LMRun, report: Report, measure: Measure | None) -> Path:
    packs = [Pack(path) for path in options.data.packs]
    phones = phones_of_run(options.run, options.model, packs)
    text = text_options(options.data, options.model)
    model = new_speech_model(options.model, text, len(phones), options.run.seed)
    sampler = wave_sampler(options, packs, text, model.config.lm, phones)
    write_phones(phones, options.run.out)
    rates = [options.run.encoder_rate if p.encoder_rate is None else p.encoder_rate for p in options.phase]
    train_encoder = max(rates, default=options.run.encoder_rate) > 0
    teacher = text_teacher = None
    languages = sorted({clip.language for pack in packs for clip in pack.clips})
    if options.distil is not None:
        front_end, whisper = cast(LogMel, model.codec.mel), model.config.codec.whisper
        given = read_whisper(options.distil.teacher)
        teacher = Teacher(given, whisper, front_end, sampler.clean, dtype_of(options.run))
        if share := options.distil.text:
            name, dtype = options.distil.teacher, dtype_of(options.run)
            text_teacher = read_text_teacher(name, sampler.tokenizer, languages, dtype), share
    if options.model.decoder is not None:
        features, mean = partial(frame_features, model, sampler), teacher.mean() if teacher else None
        start_from(model, options.model.decoder, sampler.tokenizer, languages, features, mean)
    old = old_model(model, options.loss, text.growth)
    task = WhisperJointTask(
        model,
        sampler,
        options.loss,
        options.quantiser,
        train_encoder,
        teacher,
        old,
        text_teacher,
        options.lookaheads,
    )

    def export(folder: Path) -> None:
        export_model(model, model.config, text.tokenizer, folder)
        write_training_part(model, phones, folder)

    return _export_at_end(task, sampler, options, report, sampler.remarks(), export, measure)


def _export_at_end(
    task: Task,
    sampler: Sampler,
    options: LMRun,
    report: Report,
    remarks: Sequence[str],
    export: Callable[[Path], None],
    measure: Measure | None,
) -> Path:
    def export_with_card(folder: Path) -> None:
        export(folder)
        packs = [Pack(path) for path in options.data.packs]
        write_card(folder, packs, _all_weights(options), options.model.base or options.model.init)

    candidate = None if options.lora is not None else export_with_card
    check = _check(options, task, sampler, measure, candidate)
    _run(task, options.run, report, remarks, check, _plan(options, sampler))
    folder = options.run.out / "model"
    if is_first():
        export_with_card(folder)
    return folder


def _speech(options: CodecRun | LMRun, packs: list[Pack]) -> tuple[SpeechModel, RowSampler, TextOptions]:
    """What a run of phones or text trains, where its rows come from, and what it writes."""
    phones = phones_of_run(options.run, options.model, packs)
    text = text_options(options.data, options.model)
    model = new_speech_model(options.model, text, len(phones), options.run.seed)
    rows = row_options(options.data, text, model.config.lm)
    tokenizer = open_tokenizer(text.tokenizer, model.config.lm)
    return model, RowSampler(packs, phones, tokenizer, rows, seed=options.run.seed), text


def _run_text(options: LMRun, report: Report, measure: Measure | None) -> Path:
    base = ModelBundle.resolve(str(options.model.base)).checkpoint()
    config = base.config
    text = text_options(options.data, options.model)
    lm_config = options.model.lm or grown(config.lm, text.growth)
    if options.model.pause_heads is not None:
        lm_config = lm_config.model_copy(update={"pause_heads": options.model.pause_heads})
    if options.model.lm is None:
        lm_config = with_drawn_delay(lm_config, text.delay)
    config = delayed(config.model_copy(update={"lm": lm_config}), text.delay)
    codec = build_codec(config.codec, base.codec)
    packs = _token_packs(options.data, codec, str(options.model.base), config.lm.audio_vocab)
    torch.manual_seed(options.run.seed)
    if options.model.lm is None:
        lm = based_lm(base, config.lm, options, text.growth)
    else:
        lm = LM(config.lm)
        start_audio_embeddings(lm, codec)
    rows = row_options(options.data, text, config.lm)
    sampler = TokenSampler(packs, open_tokenizer(text.tokenizer, config.lm), rows, seed=options.run.seed)
    if sampler.kind.width < config.lm.num_codebooks or sampler.kind.rate != config.codec.frame_rate:
        raise ConfigError(
            f"data.packs hold {sampler.kind.width} codebooks at {sampler.kind.rate:g} Hz, the model reads "
            f"{config.lm.num_codebooks} at {config.codec.frame_rate:g} Hz: pack with `slipstream data pack --model`"
        )
    old = old_lm(lm, options.loss, text.growth)
    task = TextTask(lm, sampler, options.loss, options.quantiser.codebook_dropout, old)

    def export(folder: Path) -> None:
        export_lm(merged_weights(lm), Checkpoint(config, {}, base.codec, text.tokenizer), folder)
        if options.lora is not None:
            files = config.files.model_copy(update={"tokenizer": text.tokenizer.name})
            write_adapter(lm, config.model_copy(update={"files": files}), options.lora, folder)
        if options.pause_heads_only:
            copy_training_part(str(options.model.base), folder)

    remarks = [*sampler.remarks(), *lost(base.config)]
    return _export_at_end(task, sampler, options, report, remarks, export, measure)


def _token_packs(data: DataOptions, codec: Mimi, model: str, vocabulary: int) -> list[Pack]:
    """The packs of a run on the tokens of a model's codec. Those of `data.valid` are checked, too."""
    packs = [Pack(path) for path in data.packs]
    held_out = [Pack(path) for path in data.valid.packs] if data.valid else []
    check_tokens([*packs, *held_out], codec, model, vocabulary)
    return packs


def _run(
    task: Task,
    options: RunOptions,
    report: Report,
    remarks: Sequence[str] = (),
    check: Check | None = None,
    phases: Phases | None = None,
) -> Path:
    if options.checkpoint_layers:
        for module in task.module.modules():
            if isinstance(module, Transformer | WhisperEncoder):
                module.checkpointing = True
    if options.compile:
        compile_layers(task.module)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f'run.device = "{options.device}", but PyTorch finds no CUDA device here; there is "cpu"')
    trainer = Trainer(task, options, report if is_first() else _silent, check, phases)
    for remark in remarks:
        trainer.report(remark)
    if isinstance(options, Rehearsal):
        sampler: Sampler | CropSampler = task.sampler  # type: ignore[attr-defined]
        write_rows(sampler, options.folder, options.first_row)
    trainer.report(str(estimate(task, options, trainer.share)))
    return trainer.run()


def compile_layers(module: nn.Module, backend: str = "inductor") -> None:
    """Compile each layer of a module's Transformers and Whisper models when it is first called.

    Raises `ConfigError` if there is no C++ compiler, which `inductor` needs.
    """
    names = (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")
    if backend == "inductor" and not any(shutil.which(name) for name in names):
        raise ConfigError(
            "run.compile = true needs a C++ compiler, and neither g++, clang++ nor cl is in PATH: install one, or set "
            "run.compile = false"
        )
    for layer in module.modules():
        if isinstance(layer, TransformerLayer | WhisperLayer | WhisperDecoderLayer):
            layer.compile(backend=backend)


def _silent(line: str) -> None:
    pass


def load_codec(model: str) -> Mimi:
    """The codec of a model, or one that is alone in its folder, to make tokens with."""
    weights, config = find_codec(model)
    return build_codec(config, read_codec(weights, config))
