"""A run tried out (`--check`): its rows as audio and drawings, two steps, and an estimate of its time and memory."""

from __future__ import annotations

import html
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slipstream.arrays import FloatArray, IntArray
from slipstream.data.rows import Sampler
from slipstream.data.speech_rows import SpeechSampler
from slipstream.data.wave import write_wave
from slipstream.data.waves import WaveBatch
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.numerics import NO_TOKEN
from slipstream.model.text import Tokenizer
from slipstream.train.options import RunOptions
from slipstream.train.reconstruction import CropSampler

ROWS = 3
_STEPS = 2
_FRAME_WIDTH, _HEIGHT = 16, 150


class Rehearsal(RunOptions):
    """Two steps of a run, in a separate folder.

    folder: where rows are written. first_row: the first of them.
    """

    folder: Path
    first_row: int = 0


def rehearse(options: Any, folder: Path, first_row: int, run: Callable[[Any], object]) -> str:
    """Run two steps of a run by `run`, write rows into `folder`, and describe the whole run.

    Args:
        options: a `CodecRun`, an `LMRun` or a `TTSRun`.
        first_row: number of the first row to write, such as one that an error names.
    """
    whole: RunOptions = options.run
    with tempfile.TemporaryDirectory() as out:
        given = dict(whole) | {"out": Path(out), "steps": _STEPS, "minutes": None, "log_every": 1, "trackers": ()}
        tried = Rehearsal(**given | {"folder": folder, "first_row": first_row})
        run(options.model_copy(update={"run": tried, "data": options.data.model_copy(update={"valid": None})}))
        lines = (Path(out) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    step_seconds = whole.rows * options.data.seconds / json.loads(lines[-1])["realtime"]
    return f"{_length(whole, step_seconds)}; memory: {_memory()}; rows {first_row} to {first_row + ROWS - 1}: {folder}"


def write_rows(sampler: Sampler | CropSampler, folder: Path, first_row: int) -> None:
    """Write `ROWS` rows: a drawing of each stream if there are streams, and its audio if the rows are samples."""
    folder.mkdir(parents=True, exist_ok=True)
    batch = sampler.batch(first_row, ROWS)
    if isinstance(sampler, CropSampler):
        for n, samples in enumerate(batch.samples_BS):
            write_wave(folder / f"row-{first_row + n}.wav", samples, sampler.codec.sample_rate)
        return
    for n in range(ROWS):
        samples = batch.heard_BS[n] if isinstance(batch, WaveBatch) else None
        name = folder / f"row-{first_row + n}"
        if samples is not None:
            write_wave(name.with_suffix(".wav"), samples, round(sampler.kind.rate))
        drawing = draw(sampler.tokenizer, *_streams(sampler, batch, n), samples)
        name.with_suffix(".svg").write_text(drawing, encoding="utf-8")


def _streams(sampler: Sampler, batch: Any, n: int) -> tuple[str, IntArray, IntArray]:
    """What `draw` takes of a row: a title, the text of each frame, and what is below it."""
    if isinstance(sampler, SpeechSampler):
        second_T, first_T = np.divmod(batch.text_BT[n], sampler.config.lm.text_vocab + 1)
        title = f"audio {_frames(sampler.config.delay_steps)} behind the text; red: the second text stream"
        return title, first_T, np.where(second_T == 0, PAD_ID, second_T - 1)
    targets = batch.targets
    title = f"text {_frames(int(targets.delay_B[n]))} behind the audio; red: what the LM reads instead"
    return title, targets.text_BT[n], targets.seen_BT[n]


def _frames(delay: int) -> str:
    return f"{delay} frames ({delay / 12.5:.2f} s)"


def draw(tokenizer: Tokenizer, title: str, text_T: IntArray, below_T: IntArray, samples: FloatArray | None) -> str:
    """Draw a row as SVG: its waveform, the text stream below it, and in red what differs from it in another stream.

    One frame is 16 pixels wide.
    """
    frames = len(text_T)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{frames * _FRAME_WIDTH}" height="{_HEIGHT}" '
        'font-family="monospace" font-size="11">',
        f'<text x="2" y="12">{title}</text>',
    ]
    if samples is not None:
        bars = frames * 4
        peaks = np.abs(samples[: len(samples) // bars * bars].reshape(bars, -1)).max(axis=1)
        heights = 40 * peaks / max(float(peaks.max()), 1e-9)
        path = "".join(f"M{4 * i} {60 - h:.1f}V{60 + h:.1f}" for i, h in enumerate(heights))
        parts.append(f'<path d="{path}" stroke="#36c" stroke-width="2"/>')
    for t in range(frames):
        x = t * _FRAME_WIDTH
        if t % 25 == 0:
            parts.append(f'<path d="M{x} 105V{_HEIGHT}" stroke="#ccc"/><text x="{x + 2}" y="148">{t / 12.5:g} s</text>')
        for token, y, colour in ((int(text_T[t]), 118, "#000"), (int(below_T[t]), 132, "#c00")):
            if token != PAD_ID and (y == 118 or token != text_T[t]):
                parts.append(f'<text x="{x}" y="{y}" fill="{colour}">{html.escape(_name(tokenizer, token))}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _name(tokenizer: Tokenizer, token: int) -> str:
    return {WORD_ID: "|", NO_TOKEN: "?", PAD_ID: "-"}.get(token) or tokenizer.decode([token]) or str(token)


def _length(run: RunOptions, step_seconds: float) -> str:
    """How long the run takes, or how many steps it has, if each takes as long as the second."""
    if run.steps is not None:
        return f"{step_seconds:.3g} s per step, {run.steps} steps: {run.steps * step_seconds / 3600:.2f} h"
    minutes = run.minutes or 0.0
    return f"{step_seconds:.3g} s per step, {minutes:g} minutes: {int(minutes * 60 / step_seconds)} steps"


def _memory() -> str:
    """The most memory so far, in GiB; a run that validates or exports may need more."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 30):.2f} GiB of this process"
    if torch.cuda.is_available():
        text += f", {torch.cuda.max_memory_allocated() / (1 << 30):.2f} GiB of the GPU"
    return text
