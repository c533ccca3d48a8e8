"""The audio that `slipstream transcribe` reads: one job per stream of audio."""

from __future__ import annotations

import glob
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from slipstream.errors import AudioError, SlipstreamError

if TYPE_CHECKING:
    from slipstream.audio import RawFormat


@dataclass(frozen=True, slots=True)
class Job:
    """One stream of audio to transcribe.

    Args:
        path: The file; None is standard input.
        name: Its name in messages.
        place: The path of its output within the output folder, without the suffix.
        channel: The channel to transcribe, counted from 0; None mixes all.
        track: The audio track, counted from 1; None is the main one.
    """

    path: Path | None
    name: str
    place: Path
    channel: int | None = None
    track: int | None = None

    @property
    def is_pipe(self) -> bool:
        """Whether it can be read only once: standard input, a FIFO or the shell's `<(...)`."""
        return self.path is None or (self.path.exists() and not self.path.is_file())

    def output(self, folder: Path, suffix: str, partial: bool = False) -> Path:
        """The file to write: `<place>[.ch1][.partial].<suffix>`."""
        channel = "" if self.channel is None else f".ch{self.channel + 1}"
        return folder / f"{self.place}{channel}{'.partial' if partial else ''}.{suffix}"


def find_jobs(arguments: Sequence[str]) -> list[Job]:
    """Find the jobs of files, folders (with all subfolders), patterns and `-`, in order, without duplicates.

    Inputs that differ only in their suffix keep it in the name of their output.

    Raises:
        AudioError: A folder has no audio files, a pattern matches nothing, or an argument is a URL.
    """
    found: dict[str, Job] = {}
    for argument in arguments:
        for job in _expand(argument):
            found.setdefault(job.name, job)
    jobs = list(found.values())
    places = Counter(job.place for job in jobs)
    return [
        replace(job, place=job.place.with_name(job.path.name)) if job.path and places[job.place] > 1 else job
        for job in jobs
    ]


def check_places(jobs: Sequence[Job]) -> None:
    """Raise `AudioError` if two jobs would write the same file."""
    writers: dict[tuple[Path, int | None], Job] = {}
    for job in jobs:
        other = writers.setdefault((job.place, job.channel), job)
        if other is not job:
            raise AudioError(
                f"{other.name} and {job.name} would both be written to {job.place}.*: pass their common folder instead"
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
    """Copy the audio of a pipe to a temporary file, which the job of each channel can read."""
    if not job.is_pipe:
        yield job
        return
    # Not NamedTemporaryFile, which Windows cannot open a second time.
    with tempfile.TemporaryDirectory(prefix="slipstream-", ignore_cleanup_errors=True) as folder:
        copy = Path(folder, "audio")
        with copy.open("wb") as file, job.path.open("rb") if job.path else nullcontext(sys.stdin.buffer) as pipe:
            shutil.copyfileobj(pipe, file)
        yield replace(job, path=copy)


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
    path = Path(argument)
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
