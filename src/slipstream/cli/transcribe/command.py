"""The options of `slipstream transcribe`, and what they do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from slipstream.cli.console import fail, first_signal_stops, notice
from slipstream.cli.models import open_transcriber
from slipstream.cli.options import (
    DEFAULT_MODEL,
    Backend,
    Device,
    MinConfidence,
    Model,
    Quantize,
    Raw,
    RawChannels,
    RawRate,
    Server,
    Threads,
    Track,
    check_remote,
    given_model,
    raw_format_of,
)
from slipstream.cli.output import has_text, make_folder, render, write_file, write_stdout
from slipstream.cli.streams import check_stdout
from slipstream.cli.transcribe.hints import check_hints, make_hints
from slipstream.cli.transcribe.recognisers import LocalRecogniser, Recogniser, ServerRecogniser
from slipstream.cli.transcribe.run import Result, transcribe_all
from slipstream.cli.transcribe.sources import Job, channel_jobs, check_places, find_jobs, on_disk
from slipstream.transcript import SUBTITLES, Format

if TYPE_CHECKING:
    from slipstream.subtitles import SubtitleLayout


def transcribe(
    context: typer.Context,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILES", help="Audio or video files, folders or patterns; - is standard input."),
    ],
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    backend: Backend = "auto",
    quantize: Quantize = None,
    threads: Threads = None,
    server: Server = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="Output format.")] = "txt",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write one file per input to this folder.")
    ] = None,
    words: Annotated[
        bool, typer.Option("--words", help="With txt: write one line per word, with its times and confidence.")
    ] = False,
    max_line_width: Annotated[
        int | None,
        typer.Option("--max-line-width", "--max_line_width", min=2, help="Subtitles: columns per line. Default: 42."),
    ] = None,
    max_line_count: Annotated[
        int | None,
        typer.Option("--max-line-count", "--max_line_count", min=1, help="Subtitles: lines per cue. Default: 2."),
    ] = None,
    max_words: Annotated[
        int | None,
        typer.Option(
            "--max-words", "--max_words_per_line", min=1, help="Subtitles: words per cue. Default: as many as fit."
        ),
    ] = None,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Files to transcribe in parallel.")] = 1,
    keywords: Annotated[
        list[str] | None,
        typer.Option(
            "--keywords",
            metavar="FILE|WORDS",
            help="Words and phrases that are likely: a file with one per line, or text with commas; word:2 doubles its "
            "weight.",
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Option("--prompt", help="Text before the speech: sets names, spelling and style.")
    ] = "",
    beam: Annotated[
        int | None,
        typer.Option(
            "--beam",
            min=1,
            max=8,
            help="Hypotheses of the text to keep; each takes a slot. 1 is greedy decoding. Default: the value in the "
            "model's config.json, and 1 with --server.",
        ),
    ] = None,
    alternatives: Annotated[
        int,
        typer.Option(
            "--alternatives", min=1, max=8, help="Texts for each doubtful word in JSON; searches as --beam does."
        ),
    ] = 1,
    min_confidence: MinConfidence = None,
    lm: Annotated[
        list[Path] | None,
        typer.Option("--lm", metavar="FILE", help="Text like the speech, for --beam: makes its word sequences likely."),
    ] = None,
    channels: Annotated[
        Literal["mix", "separate"],
        typer.Option("--channels", help="Mix all channels, or transcribe each channel separately."),
    ] = "mix",
    track: Track = None,
    language: Annotated[
        str,
        typer.Option(
            "--language",
            "-l",
            metavar="CODES",
            help="Languages that may be spoken, such as fr or en,fr; auto for all that can be identified. JSON then "
            "has the language of each word and turn. A model that can be set to one refuses others: tiny has en, fr.",
        ),
    ] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="With -o: skip inputs whose output file already has text.")
    ] = False,
    delay_report: Annotated[
        bool, typer.Option("--delay-report", help="Report the speed and the delay of the words for each file.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Transcribe on a Ray cluster: its address, auto, or local for one on this machine. -o is a .jsonl "
            "file, or a folder for Parquet files, with a row per input; a second run skips finished inputs.",
        ),
    ] = None,
    actors: Annotated[int, typer.Option("--actors", min=1, help="With --ray: engines, of --slots each.")] = 1,
    raw: Raw = None,
    raw_rate: RawRate = None,
    raw_channels: RawChannels = None,
) -> None:
    """Transcribe recordings to text, subtitles or JSON, with the time of each word."""
    asked = {"max_line_width": max_line_width, "max_line_count": max_line_count, "max_words": max_words}
    layout = {name: value for name, value in asked.items() if value is not None}
    if words and format != "txt":
        raise typer.BadParameter(f"it applies to txt only, not to {format}", param_hint="--words")
    if layout and format not in SUBTITLES:
        option = f"--{next(iter(layout)).replace('_', '-')}"
        raise typer.BadParameter(f"it applies to subtitles (srt, vtt) only, not to {format}", param_hint=option)
    if actors > 1 and not ray:
        raise typer.BadParameter("it applies to --ray only", param_hint="--actors")
    if server:
        check_remote(device, backend, quantize, threads)
    if ray:
        from slipstream.cli.transcribe.on_ray import transcribe_on_ray

        hinted = bool(keywords or prompt or lm or language or alternatives > 1 or min_confidence is not None)
        written = words or layout or format != "txt" or resume or delay_report
        local = raw or track or server or channels != "mix" or quantize or threads
        if hinted or written or local or output is None:
            allowed = "--model, --device, --backend, --slots, --beam, --actors"
            raise typer.BadParameter(f"it needs -o, and takes only {allowed}", param_hint="--ray")
        options = {"backend": backend, "device": device, "beam": beam}
        transcribe_on_ray(files, ray, output, model=model, slots=slots, actors=actors, **options)
        return
    raw_format = raw_format_of(raw, raw_rate, raw_channels, track)
    hints = make_hints(keywords or (), prompt, beam, lm or (), language, alternatives)
    if server and ((beam or 1) > 1 or hints.lm):
        raise typer.BadParameter("it is not available with --server", param_hint="--beam")
    if server and min_confidence is not None:
        raise typer.BadParameter("it is not available with --server", param_hint="--min-confidence")
    if output and output.exists() and not output.is_dir():
        raise typer.BadParameter(f"{output} is not a folder", param_hint="--output")
    if output and not output.exists() and output.suffix[1:] in get_args(Format):
        what = f"it names a folder, and {output} looks like a file: for one file use > {output}"
        raise typer.BadParameter(what, param_hint="--output")
    if resume and not output:
        raise typer.BadParameter("it needs an output folder: add -o DIR", param_hint="--resume")
    if not output:
        check_stdout()

    from slipstream.bundle import ModelBundle
    from slipstream.subtitles import SubtitleLayout

    jobs = [replace(job, track=track) for job in find_jobs(files)]
    with ExitStack() as stack:
        if channels == "separate":
            jobs = [part for job in jobs for part in channel_jobs(stack.enter_context(on_disk(job)), raw_format)]
        if output:
            check_places(jobs)
        elif len(jobs) > 1 and format != "txt":
            raise typer.BadParameter(f"{len(jobs)} transcripts in {format} need a folder: -o DIR", param_hint="FILES")
        if output and resume:
            jobs = _without_done(jobs, output, format)
        if not jobs:
            return
        if output:
            make_folder(output)
        slots = min(slots, len(jobs))
        if server:
            recogniser: Recogniser = ServerRecogniser(server, given_model(context, model), hints)
        else:
            bundle = ModelBundle.resolve(model)
            check_hints(hints, bundle.config)
            hints = hints.with_beam(bundle.config.beam)
            transcriber = open_transcriber(
                bundle,
                device=device,
                backend=backend,
                quantize=quantize,
                threads=threads,
                slots=slots,
                beam=hints.width,
                mode="recordings",
            )
            recogniser = LocalRecogniser(stack.enter_context(transcriber), hints, min_confidence)
        deliver = _Delivery(
            format, words, SubtitleLayout(**layout) if layout else None, output, len(jobs) > 1, delay_report
        )
        stop = stack.enter_context(first_signal_stops())
        failures = transcribe_all(recogniser, jobs, slots, raw_format, stop, deliver, in_order=output is None)
    if failures:
        fail(f"{len(failures)} of {len(jobs)} failed:\n" + "\n".join(f"  {failure}" for failure in failures))
    cut = [job.signal for job in jobs if job.signal]
    if stop.is_set() or cut:
        notice("Interrupted. The text so far is written.")
        raise typer.Exit(128 + (stop.signal if stop.is_set() else cut[0]))
    if failures:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Delivery:
    """Writes the transcript of a job to a file in `folder`, or to standard output."""

    format: Format
    words: bool
    layout: SubtitleLayout | None
    folder: Path | None
    with_names: bool
    with_report: bool

    def __call__(self, job: Job, result: Result) -> None:
        text = render(result.transcript, self.format, self.words, self.layout)
        if self.folder:
            path = job.output(self.folder, self.format, partial=not result.complete)
            if has_text(path, self.format):
                notice(f"{path}: replaces an earlier transcript")
            write_file(path, text)
            if result.complete:
                job.output(self.folder, self.format, partial=True).unlink(missing_ok=True)
        elif result.error is None:
            write_stdout(f"{job.name}:\n{text}\n" if self.with_names else text)
        if self.with_report:
            notice(f"{job.name}: {result.report}")


def _without_done(jobs: Sequence[Job], folder: Path, format: Format) -> list[Job]:
    """Leave out the jobs whose output has text, and list them."""
    done = {job.name for job in jobs if has_text(job.output(folder, format), format)}
    notice(f"{len(done)} of {len(jobs)} are already done{':' if done else '.'}")
    for job in jobs:
        path = job.output(folder, format)
        if job.name in done:
            notice(f"  {job.name}: skipped, {path} exists")
        elif path.exists():
            notice(f"  {job.name}: repeated, {path} has no text")
    return [job for job in jobs if job.name not in done]
