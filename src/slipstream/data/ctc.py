"""Word times from any CTC model: a `transformers` model, or a folder with `model.onnx` and `vocab.json`.

Shapes: T frames, V symbols.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio import load
from slipstream.checkpoints.sources import hub_answers
from slipstream.data.alignment import align_words
from slipstream.data.manifest import Recording
from slipstream.errors import BackendError, CheckpointError, SlipstreamError
from slipstream.schema import read_json

RATE = 16_000
LEAST_FIT = -3.0
"""Mean log-probability of a letter's frames below which a text is taken for another recording's."""
_BLANKS = ("<pad>", "[PAD]", "<blank>", "<blk>", "_")


class CtcAligner:
    """Finds word times by a Viterbi search over the letters that a CTC model names.

    Args:
        scores: From samples `[S]` at 16 kHz to log-probabilities `[T, V]`.
        vocabulary: The number of each letter, and that of the blank (`<pad>`, `[PAD]`, `<blank>`).
        name: For messages.
    """

    least = LEAST_FIT

    def __init__(self, scores: Callable[[FloatArray], FloatArray], vocabulary: Mapping[str, int], name: str) -> None:
        self.scores, self.vocabulary, self.name = scores, vocabulary, name
        blanks = [vocabulary[blank] for blank in _BLANKS if blank in vocabulary]
        if not blanks:
            raise CheckpointError(f"{name}: its vocabulary has no blank; expected one of {', '.join(_BLANKS)}")
        self.blank = blanks[0]

    def align(self, recording: Recording) -> tuple[Recording, float]:
        """Return the recording with the times of its words, and the mean log-probability of their letters' frames.

        Raises `SlipstreamError` when the text is too long for the audio or has none of the model's letters, or the
        audio cannot be read.
        """
        texts = recording.text.split()
        letters = [self._numbers(text) for text in texts]
        if not any(letters):
            raise SlipstreamError(f"{recording.audio}: {self.name} has no letter of {recording.text!r}")
        samples = load(recording.audio, RATE)
        log_probs = self.scores(samples)
        # `align_words` takes column 0 for silence, which may be between any two of its symbols.
        order = [self.blank, *(i for i in range(log_probs.shape[1]) if i != self.blank)]
        place = {number: at for at, number in enumerate(order)}
        numbers = [[place[letter] for letter in word] for word in letters]
        seconds = len(samples) / RATE / len(log_probs)
        found = align_words(log_probs[:, order], numbers, texts, seconds, 0.0, spikes=True)
        return replace(recording, words=found.words), found.fit

    def _numbers(self, word: str) -> list[int]:
        """The numbers of a word's letters, in the case that the vocabulary has; others are left out."""
        spellings = ((c, c.lower(), c.upper()) for c in word)
        known = (next((s for s in forms if s in self.vocabulary), None) for forms in spellings)
        return [self.vocabulary[letter] for letter in known if letter is not None]


def load_ctc(model: str) -> CtcAligner:
    """Load a CTC model: a folder with `model.onnx` and `vocab.json`, or what `transformers` can load.

    Raises `BackendError` when a package is missing, `CheckpointError` when the model cannot be loaded.
    """
    folder = Path(model)
    if (folder / "model.onnx").is_file():
        return CtcAligner(_onnx_scores(folder), _vocabulary(folder), model)
    return _from_transformers(model)


def _vocabulary(folder: Path) -> dict[str, int]:
    try:
        raw = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        return {str(symbol): int(number) for symbol, number in raw.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{folder / 'vocab.json'}: must be an object of symbols and their numbers") from error


def _onnx_scores(folder: Path) -> Callable[[FloatArray], FloatArray]:
    """Scores of a model whose first input is `[1, S]` samples, with a mean of 0 and a variance of 1 unless
    `preprocessor_config.json` has other settings."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    settings = folder / "preprocessor_config.json"
    normalise = not settings.is_file() or read_json(settings).get("do_normalize", True)
    name = session.get_inputs()[0].name

    def scores(samples: FloatArray) -> FloatArray:
        if normalise:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        logits = session.run(None, {name: samples[None].astype(np.float32)})[0][0]
        return _log_softmax(logits)

    return scores


def _from_transformers(model: str) -> CtcAligner:
    try:
        import torch
        from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer
    except ModuleNotFoundError as error:
        raise BackendError(
            f'--aligner ctc:{model} needs the extra "ctc": pip install "slipstream-stt[ctc]"; a folder with model.onnx '
            "and vocab.json needs nothing more"
        ) from error
    local = Path(model).is_dir() or not hub_answers()
    try:
        network = cast(Any, AutoModelForCTC).from_pretrained(model, local_files_only=local).eval()
        extract = cast(Any, AutoFeatureExtractor).from_pretrained(model, local_files_only=local)
        vocabulary = cast(Any, AutoTokenizer).from_pretrained(model, local_files_only=local).get_vocab()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{model}: transformers cannot load it as a CTC model: {error}") from error

    @torch.inference_mode()
    def scores(samples: FloatArray) -> FloatArray:
        given = extract(samples, sampling_rate=RATE, return_tensors="pt")
        log_probs: FloatArray = network(**given).logits[0].log_softmax(-1).numpy()
        return log_probs

    return CtcAligner(scores, vocabulary, model)


def _log_softmax(logits_TV: FloatArray) -> FloatArray:
    shifted = logits_TV - logits_TV.max(axis=-1, keepdims=True)
    log_probs: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_probs
