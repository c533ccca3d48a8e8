"""Transcribe English recordings with Moonshine, as was done for two of the training sets of `tiny`.

    pip install moonshine-voice==0.0.65 rapidfuzz
    python examples/label_with_moonshine.py untranscribed.jsonl labelled.jsonl --sentences prompts.txt

The wheel holds Moonshine's tiny English model (MIT). With `--sentences`, a file of sentences that may have been read, a
text that is nearly one of them is taken for it. Lines with a text stay as they are; texts with digits are left out,
since nobody knows how those were read. `slipstream data align` then finds when each word is spoken.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from moonshine_voice.moonshine_api import ModelArch
from moonshine_voice.transcriber import Transcriber
from moonshine_voice.utils import get_assets_path
from rapidfuzz import fuzz, process

from slipstream.audio import load
from slipstream.data.manifest import read_manifest, write_manifest
from slipstream.data.tokenizer import plain_text

RATE = 16_000
NEAR = 82.0
"""Percent of the characters that must agree for a sentence to be taken as read."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sentences", type=Path)
    arguments = parser.parse_args()

    sentences = arguments.sentences.read_text(encoding="utf-8").splitlines() if arguments.sentences else []
    plain = [plain_text(sentence) for sentence in sentences]
    # One piece of speech for each recording: cut at its pauses, short ones begin with words that are not spoken.
    whole = {"vad_threshold": "0.0", "vad_max_segment_duration": "30"}
    recogniser = Transcriber(str(Path(get_assets_path()) / "tiny-en"), ModelArch.TINY, options=whole)
    told = []
    for recording in read_manifest(arguments.manifest):
        text = recording.text
        if not text:
            heard = recogniser.transcribe_without_streaming(load(recording.audio, RATE).tolist(), RATE)
            text = " ".join(line.text for line in heard.lines)
            match = process.extractOne(plain_text(text), plain, scorer=fuzz.ratio, score_cutoff=NEAR)
            if match is not None:
                text = sentences[match[2]]
        if plain_text(text) and not any(character.isdigit() for character in text):
            told.append(replace(recording, text=text))
    write_manifest(arguments.out, told)


if __name__ == "__main__":
    main()
