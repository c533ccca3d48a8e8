"""`slipstream evaluate`: a model's errors on a manifest of recordings with their texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli.left_out import LeftOut
from slipstream.cli.options import DEFAULT_MODEL, Backend, Device, Model


def evaluate(
    manifest: Annotated[
        str, typer.Argument(help="A JSONL manifest, or hf:NAME[:CONFIG[:SPLIT]] of the Hugging Face hub.")
    ],
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    backend: Backend = "auto",
    streams: Annotated[int, typer.Option(min=1, help="Recordings heard side by side.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many recordings.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only recordings of this dataset.")] = None,
    split: Annotated[str | None, typer.Option(help="Only recordings of this split.")] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also measure pocketsphinx, on the English ones.")
    ] = False,
    endurance: Annotated[
        float | None,
        typer.Option(help="Also hear all as one stream, and so many minutes each of silence, noise and music."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with tables and plots.")] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write every number: WER and CER with their intervals, counts, times.")
    ] = None,
) -> None:
    """Measure a model: word and character errors with intervals, word times, delay, ends of turn, speed."""
    from itertools import islice

    from slipstream.checkpoints.sources import resolve
    from slipstream.data.manifest import matching
    from slipstream.evaluate.baseline import hear_pocketsphinx
    from slipstream.evaluate.datasets import read_recordings
    from slipstream.evaluate.endurance import invented_words, long_stream
    from slipstream.evaluate.report import evaluate as measure
    from slipstream.evaluate.report import to_html, to_json, to_text
    from slipstream.evaluate.scores import need_words
    from slipstream.evaluate.transcribe import hear
    from slipstream.loading import load_runner, load_tokenizer

    sources = resolve(model)
    tokenizer = load_tokenizer(sources)
    chosen = matching(read_recordings(manifest), manifest, dataset=dataset, split=split)
    recordings, left_out = list(islice(chosen, limit)), LeftOut()
    need_words(recordings, manifest)
    if baseline:
        need_words((r for r in recordings if r.lang == "en"), f"{manifest}, in English for the baseline")
    runner = load_runner(model, backend=backend, device=device, slots=streams)
    prefix = sources.config.silence_prefix_seconds
    heard, speed = hear(runner, tokenizer, recordings, prefix_seconds=prefix, on_error=left_out)
    read = {one.recording for one in heard}
    recordings = [recording for recording in recordings if recording in read]
    need_words(recordings, f"{manifest}, without the {left_out.count} that cannot be read")
    evaluation = measure(
        heard, speed, model=model, manifest=manifest, frame_rate=runner.frame_rate, left_out=left_out.count
    )
    typer.echo(to_text(evaluation))
    rival = stream = invented = None
    if baseline:
        others, took = hear_pocketsphinx(recordings)
        rival = measure(others, took, model="pocketsphinx", manifest=manifest, frame_rate=runner.frame_rate)
        typer.echo(f"\npocketsphinx\n{to_text(rival)}")
    if endurance is not None:
        stream = long_stream(runner, tokenizer, recordings)
        tenths = ", ".join(f"{part.rate:.0%} ({part.low:.0%} to {part.high:.0%})" for part in stream.parts)
        typer.echo(f"\none stream of {stream.seconds:.0f} s, WER by tenth: {tenths}")
        invented = invented_words(runner, tokenizer, endurance)
        for sound, count in invented.items():
            typer.echo(f"{sound}: {count:.0f} words an hour")
    if html is not None:
        _write(html, to_html(evaluation))
    if json is not None:
        _write(json, to_json(evaluation, baseline=rival, stream=stream, invented_words=invented))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
