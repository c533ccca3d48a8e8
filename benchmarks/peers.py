"""The built-in model and other small recognisers: `python -m benchmarks.peers MANIFEST --moonshine`.

All of them transcribe the same recordings, one at a time, in one process. For each data set it prints word error rates
with 95 % intervals. For each recogniser it prints how many times real time it runs, and how long a user waits for the
text after the end of the speech: a recogniser of whole utterances begins then; a stream has only the last frame and its
delay left. Whisper needs `faster-whisper`, `--moonshine` `moonshine-voice==0.0.65`, `--pocketsphinx` `pocketsphinx`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

import slipstream
from slipstream.arrays import FloatArray
from slipstream.audio import load
from slipstream.data.manifest import Recording, read_manifest
from slipstream.engine.options import SessionOptions
from slipstream.evaluate.scores import error_rates, groups
from slipstream.evaluate.transcribe import Hypothesis
from slipstream.events import Word
from slipstream.hints import Hints
from slipstream.loading import Mode

RATE = 16_000
THREADS = 2

Recognise = Callable[[Recording], tuple[str, float, float]]
"""From a recording to its text, the seconds of work, and the seconds from the end of the audio to the whole text."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one recogniser wrote, and how long it took for each recording."""

    hypotheses: list[Hypothesis]
    worked: list[float]
    waited: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path, help="recordings with texts")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--backend", default="onnx")
    parser.add_argument("--beam", type=int, nargs="*", default=[1, 2], help="beams of the model")
    parser.add_argument(
        "--whisper", nargs="*", default=[], help="models that faster-whisper loads; `.en` only reads English"
    )
    parser.add_argument("--moonshine", action="store_true", help="Moonshine tiny, English")
    parser.add_argument("--pocketsphinx", action="store_true", help="pocketsphinx's US English model")
    parser.add_argument("--limit", type=int, help="only the first recordings")
    arguments = parser.parse_args()
    recordings = list(islice(read_manifest(arguments.manifest), arguments.limit))
    english = [recording for recording in recordings if recording.lang == "en"]
    for beam in arguments.beam:
        for mode in ("live", "recordings"):
            name = f"{arguments.model}, {mode}, beam {beam}"
            report(name, recordings, _stream(arguments.model, arguments.backend, beam, mode))
    for model in arguments.whisper:
        report(f"whisper {Path(model).name}", english if ".en" in model else recordings, _whisper(model))
    if arguments.moonshine:
        report("moonshine tiny", english, _moonshine())
    if arguments.pocketsphinx:
        report("pocketsphinx", english, _pocketsphinx())


def report(name: str, recordings: Sequence[Recording], recognise: Recognise) -> None:
    """Print one recogniser's line for each data set, then its speed."""
    result = measure(recordings, recognise)
    for dataset, some in groups(result.hypotheses, lambda one: f"{one.recording.dataset} {one.recording.lang}").items():
        rates = error_rates(some)
        words, characters = rates.words, rates.characters
        print(
            f"{name:20} {dataset:22} WER {words.rate:6.1%} ({words.low:.1%} to {words.high:.1%}) "
            f"CER {characters.rate:6.1%}  {len(some)} recordings",
            flush=True,
        )
    print(f"{name:20} {times(result)}", flush=True)


def measure(recordings: Sequence[Recording], recognise: Recognise) -> Result:
    """Run a recogniser over the recordings, in order; the first one twice, so that its start-up does not count."""
    result = Result([], [], [])
    if recordings:
        recognise(recordings[0])
    for recording in recordings:
        text, worked, waited = recognise(recording)
        seconds = len(load(recording.audio, RATE)) / RATE
        words = [Word(word, 0.0, 0.0) for word in text.split()]
        result.hypotheses.append(Hypothesis(recording, seconds, seconds, words))
        result.worked.append(worked)
        result.waited.append(waited)
    return result


def times(result: Result) -> str:
    """The speed of a recogniser, and how long its users wait."""
    seconds = sum(one.seconds for one in result.hypotheses)
    median, slow = 1000 * statistics.median(result.waited), 1000 * float(np.percentile(result.waited, 95))
    return (
        f"{seconds / sum(result.worked):.1f} x real time; text {median:.0f} ms after the end of the audio (median), "
        f"{slow:.0f} ms (95th percentile)"
    )


def _stream(model: str, backend: str, beam: int, mode: Mode) -> Recognise:
    transcriber = slipstream.load(model, backend=backend, beam=beam, mode=mode)
    options = SessionOptions(hints=Hints(beam=beam))
    frame = round(transcriber.sample_rate / transcriber.frame_rate)

    def recognise(recording: Recording) -> tuple[str, float, float]:
        samples = load(recording.audio, transcriber.sample_rate)
        last = (len(samples) - 1) // frame * frame
        began = time.perf_counter()
        with transcriber.session(options) as session:
            session.send(samples[:last])
            while session.clock < last / transcriber.sample_rate - 1e-6:
                time.sleep(0.0005)
            ended = time.perf_counter()
            session.send(samples[last:])
            session.finish()
            words = [event.text for event in session if isinstance(event, Word)]
        done = time.perf_counter()
        return " ".join(words), done - began, done - ended

    return recognise


def _whole(transcribe: Callable[[FloatArray, Recording], str]) -> Recognise:
    """A recogniser that begins when the audio has ended."""

    def recognise(recording: Recording) -> tuple[str, float, float]:
        samples = load(recording.audio, RATE)
        began = time.perf_counter()
        text = transcribe(samples, recording)
        taken = time.perf_counter() - began
        return text, taken, taken

    return recognise


def _whisper(model: str) -> Recognise:
    from faster_whisper import WhisperModel

    whisper = WhisperModel(model, device="cpu", compute_type="int8", cpu_threads=THREADS)

    def transcribe(samples: FloatArray, recording: Recording) -> str:
        segments, _ = whisper.transcribe(samples, language=recording.lang, condition_on_previous_text=False)
        return " ".join(segment.text.strip() for segment in segments)

    return _whole(transcribe)


def _moonshine() -> Recognise:
    from moonshine_voice.moonshine_api import ModelArch
    from moonshine_voice.transcriber import Transcriber
    from moonshine_voice.utils import get_assets_path

    # One piece of speech for each recording, as in recipes/tiny/label.py.
    whole = {"vad_threshold": "0.0", "vad_max_segment_duration": "30"}
    recogniser = Transcriber(str(Path(get_assets_path()) / "tiny-en"), ModelArch.TINY, options=whole)
    return _whole(
        lambda samples, _: " ".join(
            line.text for line in recogniser.transcribe_without_streaming(samples.tolist(), RATE).lines
        )
    )


def _pocketsphinx() -> Recognise:
    from slipstream.evaluate.baseline import transcribe_pocketsphinx

    def recognise(recording: Recording) -> tuple[str, float, float]:
        (hypothesis,), speed = transcribe_pocketsphinx([recording])
        return hypothesis.text, speed.taken, speed.taken

    return recognise


if __name__ == "__main__":
    main()
