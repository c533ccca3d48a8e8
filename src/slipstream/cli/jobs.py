"""From the arguments of `transcribe` to what is to be done: one job for each stream of audio."""

from __future__ import annotations

import glob
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slipstream.errors import AudioError


@dataclass(frozen=True, slots=True)
class Job:
    """One stream of audio to transcribe: a file, or standard input where `path` is None.

    `name` is what the user calls it. `place`: where its output stands in the output folder, without the suffix.
    `channel`: the only one to transcribe, counted from 0; None is all, mixed. `track`: the audio track, counted from 1;
    None is the main one.
    """

    path: Path | None
    name: str
    place: Path
    channel: int | None = None
    track: int | None = None

    @property
    def is_pipe(self) -> bool:
        """Whether reading it consumes it: standard input, a FIFO or the shell's `<(...)`."""
        return self.path is None or (self.path.exists() and not self.path.is_file())

    def output(self, folder: Path, suffix: str, partial: bool = False) -> Path:
        """The file to write: `<place>[.ch1][.partial].<suffix>`."""
        channel = "" if self.channel is None else f".ch{self.channel + 1}"
        return folder / f"{self.place}{channel}{'.partial' if partial else ''}.{suffix}"


def find_jobs(arguments: Sequence[str]) -> list[Job]:
    """Files, folders (searched to the bottom), patterns and `-` to jobs, in order, none twice.

    Two inputs that differ in their suffix only keep it in their place, so that each has its own output.
    Raises `AudioError` for a folder without audio files, for a pattern that matches nothing, and for a URL.
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
            raise AudioError(f"{other.name} and {job.name} would both be written to {job.place}.*: give their folder")


def split_channels(job: Job, channels: int) -> list[Job]:
    """A job for each channel of a file."""
    return [replace(job, name=f"{job.name} (channel {channel + 1})", channel=channel) for channel in range(channels)]


def _expand(argument: str) -> Iterator[Job]:
    path = Path(argument)
    if argument == "-":
        yield Job(path=None, name="standard input", place=Path("stdin"))
    elif "://" in argument:
        raise AudioError(
            f"{argument}: URLs are not fetched: curl -sL {shlex.quote(argument)} | slipstream transcribe -"
        )
    elif path.is_dir():
        from slipstream.audio import audio_suffixes

        suffixes = audio_suffixes()
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
        if not files:
            raise AudioError(f"{argument}: no audio files in this folder or below it")
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
