"""`slipstream evaluate`: a model's errors on recordings with known texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli.console import counted
from slipstream.cli.left_out import LeftOut
from slipstream.cli.options import DEFAULT_MODEL, Backend, Device, MinConfidence, Model
from slipstream.cli.output import make_folder, write_file


def evaluate(
    manifest: Annotated[
        str, typer.Argument(help="A JSONL manifest, or hf:NAME[:CONFIG[:SPLIT]] for a dataset of the Hugging Face Hub.")
    ],
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    backend: Backend = "auto",
    slots: Annotated[int, typer.Option(min=1, help="Number of recordings to transcribe concurrently.")] = 8,
    streams: Annotated[int | None, typer.Option(min=1, hidden=True)] = None,
    beam: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=8,
            help="Hypotheses of the text to keep, as in slipstream transcribe. 1 is greedy decoding, as in live "
            "streams. Default: the value in the model's config.json, and 1 with --live.",
        ),
    ] = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Measure what live streams get: the lookahead of live streams, where the model has a larger one for "
            "recordings, and one hypothesis unless --beam is given.",
        ),
    ] = False,
    min_confidence: MinConfidence = None,
    delay: Annotated[
        float | None,
        typer.Option(help="Text delay in seconds, for a model that was trained with several delays."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate on the first N recordings only.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only recordings of this dataset.")] = None,
    split: Annotated[str | None, typer.Option(help="Only recordings of this split.")] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also measure pocketsphinx on the English recordings.")
    ] = False,
    endurance: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            help="Also transcribe all recordings as one stream, and this much silence, noise and music.",
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with tables and plots to this file.")] = None,
    json: Annotated[
        Path | None,
        typer.Option(help="Write all results to this file: WER and CER with their intervals, counts and times."),
    ] = None,
) -> None:
    """Measure a model: word and character errors with intervals, word times, ends of turn, confidence and speed."""
    from itertools import islice

    from slipstream.bundle import ModelBundle
    from slipstream.data.manifest import matching
    from slipstream.evaluate.datasets import read_recordings
    from slipstream.evaluate.page import to_html
    from slipstream.evaluate.report import evaluate as measure
    from slipstream.evaluate.report import to_json, to_text
    from slipstream.evaluate.scores import need_words
    from slipstream.evaluate.transcribe import transcribe_recordings
    from slipstream.hints import Hints
    from slipstream.loading import load

    bundle = ModelBundle.resolve(model)
    if delay is not None:
        bundle.config.with_delay(delay)  # refuses one that the model lacks, before all recordings are left out
    chosen = matching(read_recordings(manifest), manifest, dataset=dataset, split=split)
    recordings, left_out = list(islice(chosen, limit)), LeftOut()
    need_words(recordings, manifest)
    if baseline:
        need_words((r for r in recordings if r.lang == "en"), f"{manifest}, in English for the baseline")
    for path in (html, json):
        if path is not None and (path.is_file() or not path.exists()):
            make_folder(path.parent)
    with load(
        bundle.uncalibrated(),
        backend=backend,
        device=device,
        slots=streams or slots,
        beam=1 if live and beam is None else beam,
        mode="live" if live else "recordings",
    ) as transcriber:
        hints = None if delay is None else Hints(delay=delay)
        hypotheses, speed = transcribe_recordings(
            transcriber, recordings, on_error=left_out, min_confidence=min_confidence, hints=hints
        )
        transcribed = {one.recording for one in hypotheses}
        recordings = [recording for recording in recordings if recording in transcribed]
        need_words(recordings, f"{manifest}, without the {left_out.count} that cannot be read")
        frame_rate = transcriber.frame_rate
        evaluation = measure(
            hypotheses,
            speed,
            model=model,
            manifest=manifest,
            frame_rate=frame_rate,
            left_out=left_out.count,
            beam=transcriber.beam,
            delay=transcriber.delay if delay is None else delay,
            calibration=bundle.config.confidence,
        )
        typer.echo(to_text(evaluation))
        rival = stream = invented = None
        if baseline:
            from slipstream.evaluate.baseline import transcribe_pocketsphinx

            others, taken = transcribe_pocketsphinx(recordings)
            rival = measure(others, taken, model="pocketsphinx", manifest=manifest, frame_rate=frame_rate)
            typer.echo(f"\npocketsphinx\n{to_text(rival)}")
        if endurance is not None:
            from slipstream.evaluate.endurance import invented_words, long_stream

            stream = long_stream(transcriber, recordings)
            tenths = ", ".join(f"{part.rate:.0%} ({part.low:.0%} to {part.high:.0%})" for part in stream.parts)
            typer.echo(f"\none stream of {stream.seconds:.0f} s, WER by tenth: {tenths}")
            invented = invented_words(transcriber, endurance)
            for sound, count in invented.items():
                typer.echo(f"{sound}: {counted(round(count), 'word')} per hour")
    if html is not None:
        write_file(html, to_html(evaluation))
    if json is not None:
        write_file(json, to_json(evaluation, baseline=rival, stream=stream, invented_words=invented))
