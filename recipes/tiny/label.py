"""Texts for recordings that have none, by two recognisers: Whisper base (CTranslate2) and Moonshine tiny, English.

    pip install faster-whisper moonshine-voice==0.0.65 rapidfuzz
    python recipes/tiny/label.py untranscribed.jsonl labelled.jsonl --whisper data/whisper-base

An English text is kept where the two differ by at most a quarter of the words. A recording in another language keeps
Whisper's text where Whisper is confident. Texts with digits are left out, since nobody knows how those were read.
`--fast` labels English by Moonshine alone, in a third of the time; then `slipstream data align --least` leaves out what
does not fit. Lines with a text stay as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from faster_whisper import WhisperModel
from moonshine_voice.moonshine_api import ModelArch
from moonshine_voice.transcriber import Transcriber
from moonshine_voice.utils import get_assets_path
from rapidfuzz.distance import Levenshtein

from slipstream.audio import load
from slipstream.data.manifest import read_manifest, write_manifest
from slipstream.data.tokenizer import plain_text

RATE = 16_000
MOST_DIFFERENT = 0.25
"""Share of the words by which two texts that are taken for the same may differ."""
LEAST_CONFIDENT = -0.6
"""Mean log-probability of a token below which a text by Whisper alone is left out."""
CHARACTERS_A_SECOND = (4, 22)
"""Between these a text may be read; outside, a recogniser repeated itself or missed most of the speech."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--whisper", required=True, help="a folder or name that faster-whisper loads")
    parser.add_argument("--fast", action="store_true")
    arguments = parser.parse_args()

    whisper = WhisperModel(arguments.whisper, device="cpu", compute_type="int8")
    moonshine = _moonshine()
    labelled = []
    for recording in read_manifest(arguments.manifest):
        text = recording.text or _label(load(recording.audio, RATE), recording.lang, whisper, moonshine, arguments.fast)
        if plain_text(text) and not any(character.isdigit() for character in text):
            labelled.append(replace(recording, text=text))
    write_manifest(arguments.out, labelled)


def _label(
    samples: np.ndarray, language: str, whisper: WhisperModel, moonshine: Callable[[np.ndarray], str], fast: bool
) -> str:
    """The text of a recording, or an empty one where it is not certain."""
    second = moonshine(samples) if language == "en" else ""
    if fast and second:
        low, high = CHARACTERS_A_SECOND
        return second if low < len(second) / (len(samples) / RATE) < high else ""
    # Windows of the recording's own length instead of 30 s: the encoder is most of the work.
    seconds = max(7, int(np.ceil(len(samples) / RATE + 1.5)))
    segments, _ = whisper.transcribe(
        samples, language=language, beam_size=1, temperature=0.0, chunk_length=min(30, seconds)
    )
    parts = list(segments)
    text = " ".join(part.text.strip() for part in parts)
    if language == "en":
        words, others = plain_text(text).split(), plain_text(second).split()
        return text if Levenshtein.distance(words, others) <= MOST_DIFFERENT * len(words) else ""
    confident = bool(parts) and np.mean([part.avg_logprob for part in parts]) > LEAST_CONFIDENT
    return text if confident else ""


def _moonshine() -> Callable[[np.ndarray], str]:
    # One piece of speech for each recording: cut at its pauses, short ones begin with words that are not in the audio.
    whole = {"vad_threshold": "0.0", "vad_max_segment_duration": "30"}
    recogniser = Transcriber(str(Path(get_assets_path()) / "tiny-en"), ModelArch.TINY, options=whole)

    def transcribe(samples: np.ndarray) -> str:
        return " ".join(line.text for line in recogniser.transcribe_without_streaming(samples.tolist(), RATE).lines)

    return transcribe


if __name__ == "__main__":
    main()
