"""How long a voice agent takes from the end of speech to its first sound: `python -m benchmarks.voice_agent`.

It runs `examples/voice_agent.py` on the sentences of its sample, each followed by silence and in real time, with a
stand-in for the language model. Without `--speech`, the text-to-speech model is a small one with random weights: the
figure then has the waiting of the protocol and of the script, and not the cost of a real model.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.language_model import language_model

import slipstream
from slipstream.arrays import FloatArray
from slipstream.audio import SAMPLE_RATE, load
from slipstream.checkpoints.speech import SpeechCheckpoint, save_speech
from slipstream.testing import random_model, small_tts_config, tokenizer_path

EXAMPLES = Path(__file__).parents[1] / "examples"
CHUNK = 480
"""Samples of a chunk of the microphone: 20 ms."""
STEPS = ("end of speech", "end of turn", "turn", "request", "first token", "first sound")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--speech", help="text-to-speech model; a small one with random weights by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first-token", type=float, default=0.2, help="seconds to the language model's first word")
    parser.add_argument("--token", type=float, default=0.02, help="seconds to each further word")
    arguments = parser.parse_args()
    answer = "certainly, I have found a seat by the window for you"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url, _ = stack.enter_context(language_model([answer], arguments.first_token, arguments.token))
        transcriber = stack.enter_context(slipstream.load(arguments.model, beam=1))
        speaker = stack.enter_context(slipstream.load_speaker(arguments.speech or small_model(folder)))
        agent = load_agent()
        speech = sentences(load(EXAMPLES / "sample.opus", SAMPLE_RATE))
        rounds = [
            measure(agent, speech_S, transcriber, speaker, url) for _ in range(arguments.rounds) for speech_S in speech
        ]
    print(f"{len(rounds)} turns; seconds after the end of speech")
    print(f"{'':14} {'median':>7} {'least':>7} {'most':>7}")
    for step in STEPS[1:]:
        seconds = [times[step] - times["end of speech"] for times in rounds]
        print(f"{step:14} {statistics.median(seconds):7.2f} {min(seconds):7.2f} {max(seconds):7.2f}")


def load_agent() -> Any:
    """Import the example."""
    spec = importlib.util.spec_from_file_location("voice_agent", EXAMPLES / "voice_agent.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_model(folder: Path) -> Path:
    """A model with random weights in which words begin often."""
    config = small_tts_config()
    lm, codec = random_model(config, 5)
    lm["text_linear.weight"][[0, 3]] *= 3
    save_speech(SpeechCheckpoint(config, lm, codec, tokenizer_path()), folder)
    return folder


def sentences(audio_S: FloatArray, pause_seconds: float = 0.3) -> list[FloatArray]:
    """Cut a recording at its pauses; each piece ends with its last sound."""
    frames_TS = audio_S[: len(audio_S) // CHUNK * CHUNK].reshape(-1, CHUNK)
    loud = np.flatnonzero(np.sqrt((frames_TS**2).mean(1)) > 0.005)
    gaps = np.flatnonzero(np.diff(loud) > pause_seconds * SAMPLE_RATE / CHUNK)
    starts, ends = loud[[0, *(gaps + 1)]], loud[[*gaps, -1]] + 1
    return [audio_S[start * CHUNK : end * CHUNK] for start, end in zip(starts, ends, strict=True)]


def measure(agent: Any, speech_S: FloatArray, transcriber: Any, speaker: Any, url: str) -> dict[str, float]:
    """The time of each step of one turn."""
    times: dict[str, float] = {}

    def note(step: str) -> None:
        times.setdefault(step, time.perf_counter())

    def chunks() -> Iterator[FloatArray]:
        began = time.perf_counter()
        for number in range(60 * SAMPLE_RATE // CHUNK):
            if "first sound" in times:
                return
            time.sleep(max(0.0, began + (number + 1) * CHUNK / SAMPLE_RATE - time.perf_counter()))
            piece_S = speech_S[number * CHUNK : (number + 1) * CHUNK]
            if not len(piece_S):
                times.setdefault("end of speech", began + number * CHUNK / SAMPLE_RATE)
            yield piece_S if len(piece_S) else np.zeros(CHUNK, np.float32)

    def ask(url: str, model: str, messages: list[Any]) -> Iterator[str]:
        note("request")
        for piece in asked(url, model, messages):
            note("first token")
            yield piece

    class Watched:
        """The transcriber, whose events are noted."""

        def stream(self, *arguments: Any, **options: Any) -> Iterator[Any]:
            for event in transcriber.stream(*arguments, **options):
                if "end of speech" in times and isinstance(event, slipstream.EndOfTurn | slipstream.Turn):
                    note("turn" if isinstance(event, slipstream.Turn) else "end of turn")
                yield event

    asked, agent.ask = agent.ask, ask
    try:
        agent.converse(chunks(), Watched(), speaker, lambda frame: note("first sound"), url, "stand-in")
    finally:
        agent.ask = asked
    return times


if __name__ == "__main__":
    main()
