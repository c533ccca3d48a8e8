"""`slipstream transcribe`: files, folders, patterns or standard input to text, subtitles or JSON."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from threading import Event as StopEvent
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from slipstream.cli.console import fail, first_signal_stops, notice
from slipstream.cli.ears import SERVER_KEY, Ear, LocalEar, ServerEar
from slipstream.cli.hearing import Heard, hear
from slipstream.cli.jobs import Job, check_places, find_jobs, split_channels
from slipstream.cli.models import production_hint
from slipstream.cli.options import DEFAULT_MODEL, Backend, Device, Model, Quantize, Threads
from slipstream.cli.output import has_text, render, write_file, write_stdout
from slipstream.cli.progress import counting_bar, progress_bar
from slipstream.cli.streams import check_stdout
from slipstream.errors import SlipstreamError

if TYPE_CHECKING:
    from slipstream.audio import RawFormat

_Format = Literal["txt", "json", "jsonl", "srt", "vtt", "tsv"]
_Encoding = Literal["pcm_s16le", "pcm_s24le", "pcm_f32le", "mulaw", "alaw"]


def transcribe(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILES", help="Audio or video files, folders, patterns; - is standard input."),
    ],
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    backend: Backend = "auto",
    quantize: Quantize = None,
    threads: Threads = None,
    server: Annotated[
        str | None,
        typer.Option("--server", metavar="URL", help=f"Let a `slipstream serve` hear; its key in {SERVER_KEY}."),
    ] = None,
    format: Annotated[_Format, typer.Option("--format", "-f", help="What to write.")] = "txt",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write a file for each input into this folder.")
    ] = None,
    words: Annotated[bool, typer.Option("--words", help="With txt: a line for each word, with its times.")] = False,
    max_line_width: Annotated[
        int | None,
        typer.Option("--max-line-width", "--max_line_width", min=2, help="Subtitles: columns of a line. Default: 42."),
    ] = None,
    max_line_count: Annotated[
        int | None,
        typer.Option("--max-line-count", "--max_line_count", min=1, help="Subtitles: lines of a cue. Default: 2."),
    ] = None,
    max_words: Annotated[
        int | None,
        typer.Option(
            "--max-words", "--max_words_per_line", min=1, help="Subtitles: words of a cue. Default: as many as fit."
        ),
    ] = None,
    slots: Annotated[int, typer.Option("--slots", min=1, help="How many files to hear at once.")] = 1,
    channels: Annotated[
        Literal["mix", "separate"], typer.Option("--channels", help="Mix the channels, or transcribe each by itself.")
    ] = "mix",
    track: Annotated[
        int | None,
        typer.Option("--track", min=1, metavar="N", help="Audio track to transcribe, from 1. Default: the main one."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="With -o: skip inputs whose output has text.")] = False,
    delay_report: Annotated[
        bool, typer.Option("--delay-report", help="Say how fast it went, and how late the words came.")
    ] = False,
    raw: Annotated[
        _Encoding | None, typer.Option("--raw", help="The input is audio without a header, in this encoding.")
    ] = None,
    raw_rate: Annotated[
        int | None, typer.Option("--raw-rate", metavar="HZ", help="Sample rate of --raw audio, 24000 if not given.")
    ] = None,
    raw_channels: Annotated[
        int | None, typer.Option("--raw-channels", help="Interleaved channels of --raw audio, 1 if not given.")
    ] = None,
) -> None:
    """Transcribe recordings: their words, with times."""
    if words and format != "txt":
        raise typer.BadParameter(f"only txt changes with it, not {format}", param_hint="--words")
    asked = {"max_line_width": max_line_width, "max_line_count": max_line_count, "max_words": max_words}
    layout = {name: value for name, value in asked.items() if value is not None}
    if layout and format not in ("srt", "vtt"):
        option = f"--{next(iter(layout)).replace('_', '-')}"
        raise typer.BadParameter(f"only subtitles (srt, vtt) have it, not {format}", param_hint=option)
    if server and model != DEFAULT_MODEL:
        raise typer.BadParameter("a server has its own model", param_hint="--model")
    for option, value in (("--raw-rate", raw_rate), ("--raw-channels", raw_channels)):
        if value is not None and not raw:
            raise typer.BadParameter("only audio without a header needs it: give --raw too", param_hint=option)
    if raw and track:
        raise typer.BadParameter("audio without a header has no tracks", param_hint="--track")
    if output and output.exists() and not output.is_dir():
        raise typer.BadParameter(f"{output} is not a folder", param_hint="--output")
    if resume and not output:
        raise typer.BadParameter("without -o there are no files to go on from", param_hint="--resume")
    if not output:
        check_stdout()

    from slipstream.audio import RawFormat
    from slipstream.subtitles import SubtitleLayout

    rate, count = 24_000 if raw_rate is None else raw_rate, 1 if raw_channels is None else raw_channels
    raw_format = RawFormat(raw, rate, count) if raw else None
    jobs = [replace(job, track=track) for job in find_jobs(files)]
    with ExitStack() as stack:
        if channels == "separate":
            jobs = [part for job in jobs for part in _channel_jobs(stack.enter_context(_on_disk(job)), raw_format)]
        if output:
            check_places(jobs)
        elif len(jobs) > 1 and format != "txt":
            raise typer.BadParameter(f"{len(jobs)} transcripts in {format} need a folder: -o DIR", param_hint="FILES")
        if output and resume:
            jobs = _left_to_do(jobs, output, format)

        def deliver(job: Job, heard: Heard) -> None:
            text = render(heard.transcript, format, words, SubtitleLayout(**layout) if layout else None)
            if output:
                path = job.output(output, format, partial=not heard.complete)
                if has_text(path, format):
                    notice(f"{path}: replaces an earlier transcript")
                write_file(path, text)
                if heard.complete:
                    job.output(output, format, partial=True).unlink(missing_ok=True)
            elif heard.error is None:
                write_stdout(f"{job.name}:\n{text}\n" if len(jobs) > 1 else text)
            if delay_report:
                notice(f"{job.name}: {_report(heard)}")

        if not jobs:
            return
        slots = min(slots, len(jobs))
        if server:
            ear: Ear = ServerEar(server)
        else:
            if model == DEFAULT_MODEL:
                notice(production_hint())

            import slipstream

            with counting_bar("Converting") as progress:
                transcriber = slipstream.load(
                    model,
                    device=device,
                    backend=backend,
                    slots=slots,
                    quantize=quantize,
                    threads=threads,
                    progress=progress,
                )
            ear = LocalEar(stack.enter_context(transcriber))
        stop = stack.enter_context(first_signal_stops())
        failures = _hear_all(ear, jobs, slots, raw_format, stop, deliver, in_order=output is None)
    if failures:
        fail(f"{len(failures)} of {len(jobs)} failed:\n" + "\n".join(f"  {failure}" for failure in failures))
    if stop.is_set():
        notice("Interrupted. The text up to there is written.")
        raise typer.Exit(stop.exit_code)
    if failures:
        raise typer.Exit(1)


def _hear_all(
    ear: Ear,
    jobs: Sequence[Job],
    slots: int,
    raw: RawFormat | None,
    stop: StopEvent,
    deliver: Callable[[Job, Heard], None],
    in_order: bool,
) -> list[str]:
    """Hear jobs, `slots` at once, and deliver each: what failed, a sentence each.

    `in_order`: deliver in the order of `jobs`, otherwise as they end.
    """

    def work(job: Job) -> Heard | None:
        if stop.is_set():
            return None
        return hear(ear, job, raw=raw, stop=stop, progress=partial(report, job.name))

    failures = []
    with progress_bar(_seconds(job, raw) for job in jobs) as report, _pool(slots, stop) as pool:
        job_of = {pool.submit(work, job): job for job in jobs}
        for future in job_of if in_order else as_completed(job_of):
            try:
                if heard := future.result():
                    deliver(job_of[future], heard)
                    if heard.error:
                        raise heard.error
            except SlipstreamError as error:
                failures.append(_failure(job_of[future], error))
    return failures


def _failure(job: Job, error: SlipstreamError) -> str:
    """What failed, by name: of audio the message begins with it, but a server does not know it."""
    message = str(error)
    return message if message.startswith(str(job.path or job.name)) else f"{job.name}: {message}"


@contextmanager
def _pool(workers: int, stop: StopEvent) -> Iterator[ThreadPoolExecutor]:
    """Worker threads that an exception here stops too, rather than being waited for to the end of their files."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield pool
        except BaseException:
            stop.set()
            raise


def _seconds(job: Job, raw: RawFormat | None) -> float | None:
    """How long a job's audio is; None where only its end will tell."""
    from slipstream.audio import probe

    if job.path is None or job.is_pipe:
        return None
    try:
        if raw:
            return job.path.stat().st_size / (raw.sample_bytes * raw.channels * raw.sample_rate)
        return probe(job.path, track=job.track).duration
    except (SlipstreamError, OSError):
        return 0.0  # it will fail, and say why, in its turn


@contextmanager
def _on_disk(job: Job) -> Iterator[Job]:
    """The job with a pipe copied to a file, which each channel can read for itself."""
    if not job.is_pipe:
        yield job
        return
    # Not NamedTemporaryFile, which Windows cannot open a second time.
    with tempfile.TemporaryDirectory(prefix="slipstream-", ignore_cleanup_errors=True) as folder:
        copy = Path(folder, "audio")
        with copy.open("wb") as file, job.path.open("rb") if job.path else nullcontext(sys.stdin.buffer) as pipe:
            shutil.copyfileobj(pipe, file)
        yield replace(job, path=copy)


def _channel_jobs(job: Job, raw: RawFormat | None) -> list[Job]:
    from slipstream.audio import probe

    try:
        channels = raw.channels if raw else probe(job.path or "", track=job.track).channels
    except SlipstreamError:
        return [job]  # it will fail, and say why, in its turn
    return split_channels(job, channels)


def _left_to_do(jobs: Sequence[Job], folder: Path, format: _Format) -> list[Job]:
    done = {job.name for job in jobs if has_text(job.output(folder, format), format)}
    notice(f"{len(done)} of {len(jobs)} are done already{':' if done else '.'}")
    for job in jobs:
        path = job.output(folder, format)
        if job.name in done:
            notice(f"  {job.name}: skipped, {path} is there")
        elif path.exists():
            notice(f"  {job.name}: again, {path} has no text")
    return [job for job in jobs if job.name not in done]


def _report(heard: Heard) -> str:
    speed = heard.transcript.duration / heard.seconds
    report = (
        f"{heard.transcript.duration:.1f} s heard in {heard.seconds:.1f} s, {speed:.1f}x real time; "
        f"last word {heard.flush_seconds * 1000:.0f} ms after the end"
    )
    if not heard.delays:
        return report
    worst = max(heard.delays)
    return f"{report}; text after the end of a word: median {median(heard.delays):.2f} s, at most {worst:.2f} s"
