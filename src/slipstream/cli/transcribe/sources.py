"""The audio that `slipstream transcribe` reads: one job per stream of audio."""

from __future__ import annotations

import glob
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals
from threading import Event as StopEvent
from typing import TYPE_CHECKING

from slipstream.cli.console import first_signal_stops, notice, temporary_folder
from slipstream.cli.streams import standard_input, until_stopped
from slipstream.errors import AudioError, SlipstreamError

if TYPE_CHECKING:
    from slipstream.audio import RawFormat


COPY_NAME = "audio"
"""The file with the copy of a pipe, in its temporary folder."""


@dataclass(frozen=True, slots=True)
class Job:
    """One stream of audio to transcribe.

    Args:
        path: The file; None is standard input.
        name: Its name in messages.
        place: The path of its output within the output folder, without the suffix.
        channel: The channel to transcribe, counted from 0; None mixes all.
        track: The audio track, counted from 1; None is the main one.
        signal: The signal that ended the copy of a pipe before its end.
    """

    path: Path | None
    name: str
    place: Path
    channel: int | None = None
    track: int | None = None
    signal: Signals | None = None

    @property
    def is_pipe(self) -> bool:
        """Whether it can be read only once: standard input, a FIFO or the shell's `<(...)`."""
        return self.path is None or (self.path.exists() and not self.path.is_file())

    def output(self, folder: Path, suffix: str, partial: bool = False) -> Path:
        """The file to write: `<place>[.ch1].<suffix>`, with `.partial` after it for an incomplete transcript.

        Only an incomplete transcript ends in `.partial`, so it never has the name of another job's result.
        """
        channel = "" if self.channel is None else f".ch{self.channel + 1}"
        return folder / f"{self.place}{channel}.{suffix}{'.partial' if partial else ''}"


def find_jobs(arguments: Sequence[str]) -> list[Job]:
    """Find the jobs of files, folders (with all subfolders), patterns and `-`, in order, without duplicates.

    Inputs whose outputs would have the same name keep their suffix in it.

    Raises:
        AudioError: A folder has no audio files, a pattern matches nothing, an argument is a URL, or no input exists.
            An input that is missing among others fails when it is read.
    """
    found: dict[Path | None, Job] = {}
    for argument in arguments:
        for job in _expand(argument):
            found.setdefault(job.path and Path(os.path.abspath(job.path)), job)
    jobs = list(found.values())
    if jobs and all(job.path and not job.path.exists() for job in jobs):  # found before a model is loaded
        raise AudioError(f"{', '.join(job.name for job in jobs)}: no such file")
    while True:  # a new name can be that of another: a.wav, a.mp3 and a.wav.flac
        places = Counter(job.place for job in jobs)
        named = [
            replace(job, place=job.place.with_name(job.path.name)) if job.path and places[job.place] > 1 else job
            for job in jobs
        ]
        if named == jobs:
            return jobs
        jobs = named


def check_places(jobs: Sequence[Job]) -> None:
    """Raise `AudioError` if two jobs would write the same file."""
    writers: dict[Path, Job] = {}
    for job in jobs:
        other = writers.setdefault(job.output(Path(), "*"), job)
        if other is not job:
            raise AudioError(
                f"{other.name} and {job.name} would both be written to {job.output(Path(), '*')}: "
                "pass their common folder instead"
            )


def split_channels(job: Job, channels: int) -> list[Job]:
    """Make a job for each channel of a file."""
    return [replace(job, name=f"{job.name} (channel {channel + 1})", channel=channel) for channel in range(channels)]


def channel_jobs(job: Job, raw: RawFormat | None) -> list[Job]:
    """Make a job for each channel that the job's audio has."""
    from slipstream.audio import probe

    try:
        channels = raw.channels if raw else probe(job.path or "", track=job.track).channels
    except SlipstreamError:
        return [job]  # transcribing it fails too, with a message
    return split_channels(job, channels)


@contextmanager
def on_disk(job: Job) -> Iterator[Job]:
    """Copy the audio of a pipe to a temporary file, which the job of each channel can read.

    The first signal ends the copy, and the job has the audio up to there.

    Raises:
        AudioError: The pipe is closed, empty, cannot be read, or does not fit on the disk or in `SPOOL_BYTES`.
    """
    if not job.is_pipe:
        yield job
        return
    with temporary_folder() as folder:
        copy = folder / COPY_NAME
        with first_signal_stops() as stop:
            _copy_pipe(job, copy, stop)
        if stop.is_set():
            notice("Interrupted. The audio so far is transcribed; a second signal ends this.")
        yield replace(job, path=copy, signal=stop.signal if stop.is_set() else None)


def _copy_pipe(job: Job, copy: Path, stop: StopEvent) -> None:
    from slipstream.audio.source import SPOOL_BYTES

    copied = 0
    try:
        with copy.open("wb") as file, job.path.open("rb") if job.path else nullcontext(None) as opened:
            pipe = standard_input(stop) if opened is None else until_stopped(opened, stop)
            read = getattr(pipe, "read1", pipe.read)
            while data := read(1 << 16):
                copied += len(data)
                if copied > SPOOL_BYTES:
                    raise AudioError(
                        f"{job.name}: is a pipe with more than {SPOOL_BYTES >> 30} GiB, and its channels are read from "
                        "a copy on disk: save it to a file first"
                    )
                file.write(data)
    except OSError as error:
        raise AudioError(
            f"{job.name}: cannot be copied to {copy.parent}: {error.strerror or error}: save it to a file first, or "
            "set TMPDIR to a folder with more space"
        ) from error
    if not copied:
        raise AudioError(f"{job.name}: is empty")


def duration(job: Job, raw: RawFormat | None) -> float | None:
    """Return the length of a job's audio in seconds, or None where it is known only at its end."""
    from slipstream.audio import probe

    if job.path is None or job.is_pipe:
        return None
    try:
        if raw:
            return job.path.stat().st_size / (raw.sample_bytes * raw.channels * raw.sample_rate)
        return probe(job.path, track=job.track).duration
    except (SlipstreamError, OSError):
        return 0.0  # transcribing it fails too, with a message


def _expand(argument: str) -> Iterator[Job]:
    if not argument:  # `Path` would make it the current folder
        raise AudioError("the name of an input is empty: expected a file, a folder, a pattern or -")
    path = Path(argument)
    try:
        path.exists()
    except OSError as error:  # such as a name that is too long
        raise AudioError(f"{argument:.80}: cannot be read: {error.strerror}") from error
    if argument == "-":
        yield Job(path=None, name="standard input", place=Path("stdin"))
    elif "://" in argument:
        raise AudioError(
            f"{argument}: URLs are not supported: run curl -sL {shlex.quote(argument)} | slipstream transcribe -"
        )
    elif path.is_dir():
        from slipstream.audio import audio_suffixes

        suffixes = audio_suffixes()
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
        if not files:
            raise AudioError(f"{argument}: no audio files in this folder or its subfolders")
        for file in files:
            yield Job(path=file, name=str(file), place=file.relative_to(path).with_suffix(""))
    elif not path.exists() and glob.has_magic(argument):
        matches = sorted(Path(match) for match in glob.glob(argument, recursive=True))
        files = [match for match in matches if match.is_file()]
        if not files:
            raise AudioError(f"{argument}: no file matches this pattern")
        for file in files:
            yield Job(path=file, name=str(file), place=Path(file.stem))
    else:
        yield Job(path=path, name=argument, place=Path(path.stem))
