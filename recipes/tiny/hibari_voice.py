"""English speech by the voice of hibari-tts (Apache-2.0) with word times, at 60 to 130 times real time a core.

    pip install hibari-tts onnx
    python recipes/tiny/hibari_voice.py texts/en.txt.gz data/hibari-en --hours 6 --exclude data/test.jsonl

Speed and pitch are drawn for each sentence. Word times come from the durations of phones that the model predicts; a
sentence whose words and groups of phones do not match is left out.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import hibari
import numpy as np
import onnx
import onnxruntime
from hibari import dsp

from slipstream.audio import SAMPLE_RATE
from slipstream.data.augment import resample_speech
from slipstream.data.manifest import Recording, write_manifest
from slipstream.data.texts import excluded, read_texts
from slipstream.data.tokenizer import plain_text
from slipstream.data.wave import write_wave
from slipstream.events import Word

DURATIONS = "/Clip_output_0"
"""The output of the graph's node that rounds and clips the durations of phones, in frames."""
LONGEST = 480  # phones


class Speaker:
    """hibari's model with the durations of its phones as a further output."""

    def __init__(self) -> None:
        self.voice = hibari.Hibari()
        model = onnx.load(self.voice.model_path)
        model.graph.output.append(onnx.helper.make_tensor_value_info(DURATIONS, onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options)

    def say(self, text: str, speed: float, rng: np.random.Generator) -> tuple[np.ndarray, tuple[Word, ...]] | None:
        phones = "".join(c for c in " ".join(self.voice.phonemize(text)) if c in self.voice.vocab)
        if not phones or len(phones) > LONGEST:
            return None
        ids = np.array([self.voice.ids(phones)], np.int64)
        outputs = self.session.run(None, {"ids": ids, "speed": np.array([speed], np.float32)})
        samples = np.asarray(dsp.synth(*(output[0] for output in outputs[:6]), rng), np.float32)
        ends = np.concatenate([[0], np.cumsum(np.ravel(outputs[6]))])
        ends = ends / ends[-1] * len(samples) / self.voice.sample_rate
        at, spans = 1, []
        for group in phones.split(" "):
            if any(c.isalpha() for c in group):
                spans.append((float(ends[at]), float(ends[at + len(group)])))
            at += len(group) + 1
        words = text.split()
        if len(words) != len(spans):
            return None
        return samples, tuple(Word(word, *span) for word, span in zip(words, spans, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--exclude", type=Path, help="a manifest whose sentences are not spoken")
    arguments = parser.parse_args()

    sentences = read_texts(arguments.texts)
    if arguments.exclude:
        unwanted = excluded(arguments.exclude)
        sentences = [sentence for sentence in sentences if plain_text(sentence) not in unwanted]
    random.Random(arguments.seed).shuffle(sentences)
    rng, speaker = np.random.default_rng(arguments.seed), Speaker()
    arguments.out.mkdir(parents=True, exist_ok=True)
    recordings, seconds = [], 0.0
    for number, text in enumerate(sentences):
        if seconds > arguments.hours * 3600:
            break
        spoken = speaker.say(text, float(rng.uniform(0.8, 1.25)), rng)
        if spoken is None:
            continue
        samples, words = spoken
        factor = float(np.exp(rng.uniform(-0.14, 0.14)))
        samples = resample_speech(samples, speaker.voice.sample_rate, factor, SAMPLE_RATE)
        path = arguments.out / f"{number:06d}.wav"
        write_wave(path, 0.6 * samples / np.abs(samples).max())
        timed = tuple(Word(word.text, word.start / factor, word.end / factor) for word in words)
        length = len(samples) / SAMPLE_RATE
        recordings.append(Recording(path, text, timed, (), length, "hibari-heart", "en", "hibari-en", "train"))
        seconds += length
    write_manifest(arguments.out / "manifest.jsonl", recordings)


if __name__ == "__main__":
    main()
