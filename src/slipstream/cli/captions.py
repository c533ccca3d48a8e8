"""`slipstream captions`: live captions as WebVTT segments with an HLS playlist."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import chain, islice
from pathlib import Path
from threading import Event as StopEvent
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli.console import counted, first_signal_stops, notice
from slipstream.cli.listen import check_microphones, record
from slipstream.cli.models import open_transcriber
from slipstream.cli.options import (
    DEFAULT_MODEL,
    Backend,
    Device,
    Microphone,
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
from slipstream.cli.output import write_file
from slipstream.cli.streams import OutputError, standard_input
from slipstream.cli.transcribe.recognisers import LocalRecogniser, Recogniser, ServerRecogniser
from slipstream.cli.transcribe.sources import Job, find_jobs
from slipstream.errors import SlipstreamError

if TYPE_CHECKING:
    from slipstream.arrays import FloatArray
    from slipstream.audio import RawFormat
    from slipstream.captions import CaptionSegments, MediaPlaylist, Segment
    from slipstream.events import Event

PLAYLIST = "captions.m3u8"


def captions(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help=f"Folder for {PLAYLIST} and its segments.")
    ],
    input: Annotated[
        str | None,
        typer.Argument(metavar="INPUT", help="Audio or video file; - is standard input. Default: the microphone."),
    ] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    backend: Backend = "auto",
    quantize: Quantize = None,
    threads: Threads = None,
    server: Server = None,
    microphone: Microphone = None,
    delay: Annotated[
        float | None,
        typer.Option(
            "--delay",
            min=0,
            metavar="SECONDS",
            help="How long after a word is spoken its caption appears. "
            "Default: 0 for a file; for live input the model's delay plus 1 s.",
        ),
    ] = None,
    segment: Annotated[
        float, typer.Option("--segment", min=1, metavar="SECONDS", help="Length of a segment; use that of the video.")
    ] = 6.0,
    window: Annotated[
        int | None,
        typer.Option(
            "--window", min=3, metavar="N", help="List the last N segments only, and delete older ones. Default: all."
        ),
    ] = None,
    start_time: Annotated[
        float,
        typer.Option(
            "--start-time", min=0, metavar="SECONDS", help="MPEG timestamp of the video at the start of the audio."
        ),
    ] = 0.0,
    max_line_width: Annotated[
        int, typer.Option("--max-line-width", min=2, help="Columns per line; wide letters take two.")
    ] = 32,
    max_line_count: Annotated[int, typer.Option("--max-line-count", min=1, help="Lines on the screen.")] = 2,
    track: Track = None,
    raw: Raw = None,
    raw_rate: RawRate = None,
    raw_channels: RawChannels = None,
) -> None:
    """Write live captions for HLS: two lines that roll up, as WebVTT segments with a playlist."""
    raw_format = raw_format_of(raw, raw_rate, raw_channels, track)
    if output.exists() and not output.is_dir():
        raise typer.BadParameter(f"{output} is not a folder", param_hint="--output")
    if server:
        check_remote(device, backend, quantize, threads)
    if input is not None and microphone is not None:
        raise typer.BadParameter(f"the input is {input}: omit it to use a microphone", param_hint="--microphone")
    if input is None and (raw or track):
        option = "--raw" if raw else "--track"
        raise typer.BadParameter("a microphone has neither encodings nor tracks", param_hint=option)

    from slipstream.captions import CaptionSegments, MediaPlaylist
    from slipstream.subtitles import SubtitleLayout

    job = _job(input)
    is_live = job is None or job.is_pipe
    layout, playlist = SubtitleLayout(max_line_width, max_line_count), MediaPlaylist(segment, window)
    with ExitStack() as stack:
        if server:
            recogniser: Recogniser = ServerRecogniser(server, given_model(context, model))
        else:
            transcriber = open_transcriber(
                model,
                device=device,
                backend=backend,
                quantize=quantize,
                threads=threads,
                beam=1,
                mode="live" if is_live else "recordings",
            )
            recogniser = LocalRecogniser(stack.enter_context(transcriber))
        stop = stack.enter_context(first_signal_stops())

        def segments() -> CaptionSegments:
            shown_after = delay
            if shown_after is None:
                shown_after = _live_delay(recogniser.delay) if is_live else 0.0
            return CaptionSegments(
                recogniser.delay, recogniser.frame_rate, delay=shown_after, seconds=segment, layout=layout
            )

        chunks = record(microphone, stop) if job is None else _decode(job, raw_format, track, recogniser, stop)
        first = list(islice(chunks, 1))  # an input that cannot be read leaves earlier captions as they are
        folder = _Folder(output, playlist, start_time)
        _write(recogniser.stream(chain(first, chunks)), segments, folder)
    notice(f"{folder.path}: {counted(folder.written, 'segment')}")
    if stop.is_set() and job is not None:
        notice("Interrupted. The captions so far are written.")
        raise typer.Exit(128 + stop.signal)


def _job(input: str | None) -> Job | None:
    """Return the file or pipe to read; None for the microphone."""
    if input is None:
        check_microphones()
        return None
    jobs = find_jobs([input])
    if len(jobs) > 1:
        raise typer.BadParameter(f"{input} has {len(jobs)} files: pass one", param_hint="INPUT")
    return jobs[0]


def _live_delay(model_delay: float) -> float:
    from slipstream.captions import SETTLE_SECONDS

    return model_delay + SETTLE_SECONDS


def _decode(
    job: Job, raw: RawFormat | None, track: int | None, recogniser: Recogniser, stop: StopEvent
) -> Iterator[FloatArray]:
    from slipstream.audio import decode

    source = standard_input(stop) if job.path is None else job.path
    for piece_CS in decode(source, raw=raw, track=track, sample_rate=recogniser.sample_rate):
        if stop.is_set():
            return
        yield piece_CS[0]


class _Folder:
    """Writes segments and the playlist, each file completely or not at all."""

    def __init__(self, folder: Path, playlist: MediaPlaylist, start_time: float) -> None:
        self._folder, self._playlist, self._start_time = folder, playlist, start_time
        self.path = folder / PLAYLIST
        self.written = 0

    def begin(self) -> None:
        """Write an empty playlist, so that players do not take an earlier one for this stream's."""
        if self.path.exists():
            notice(f"{self.path}: replaces earlier captions")
        write_file(self.path, self._playlist.render())

    def add(self, segment: Segment) -> None:
        """Write a segment, then the playlist that lists it, then delete what players no longer load."""
        name = f"captions-{segment.number:06}.vtt"
        write_file(self._folder / name, segment.to_vtt(self._start_time))
        expired = self._playlist.add(segment, name)
        write_file(self.path, self._playlist.render())
        self.written += 1
        for old in expired:
            (self._folder / old).unlink(missing_ok=True)

    def end(self) -> None:
        """Mark the playlist as complete."""
        self._playlist.ended = True
        write_file(self.path, self._playlist.render())


def _write(events: Iterator[Event], open_segments: Callable[[], CaptionSegments], folder: _Folder) -> None:
    """Write the captions of a stream. An error ends them, with what was transcribed before it."""
    segments: CaptionSegments | None = None
    try:
        for event in events:
            if segments is None:
                folder.begin()
                segments = open_segments()  # a server reports its delay with the first event
            for segment in segments.add(event):
                folder.add(segment)
    except SlipstreamError:
        if segments is not None:
            with suppress(OutputError):  # the error may be of the disk
                for segment in segments.finish(segments.position):
                    folder.add(segment)
                folder.end()
        raise
    folder.end()
