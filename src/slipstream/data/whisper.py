"""Whisper as a teacher: texts for recordings that have none, and word times (`faster-whisper`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from slipstream.audio import load
from slipstream.data.manifest import Recording
from slipstream.data.timed_words import LEAST_SHARED, retime
from slipstream.errors import BackendError, CheckpointError, SlipstreamError
from slipstream.events import Word

RATE = 16_000


class Whisper:
    """A Whisper checkpoint in CTranslate2's format.

    Args:
        model: A folder, a size (`large-v3`) or a repository, as `faster-whisper` takes them.
        device: `cpu` or `cuda`.

    Raises:
        BackendError: `faster-whisper` is not installed.
        CheckpointError: The model cannot be loaded.
    """

    least = LEAST_SHARED

    def __init__(self, model: str, device: str = "cpu") -> None:
        try:
            from faster_whisper import WhisperModel
        except ModuleNotFoundError as error:
            raise BackendError(
                f'whisper:{model} needs the extra "whisper": pip install "slipstream-stt[whisper]"'
            ) from error
        try:
            self._model: Any = WhisperModel(model, device=device, compute_type="auto")
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{model}: faster-whisper cannot load it: {error}") from error

    def transcribe(self, recording: Recording) -> Recording:
        """Return the recording with Whisper's text and word times, in the language of the recording.

        Its `confidence`, the mean probability of the words, is among its other keys. The text is empty where Whisper
        recognises no words. Raises `SlipstreamError` when the audio cannot be read.
        """
        words = self._words(recording)
        text = " ".join(word.text for word in words)
        confidence = round(float(np.mean([word.confidence for word in words])), 3) if words else 0.0
        return replace(
            recording, text=text, words=tuple(words), phones=(), extra=recording.extra | {"confidence": confidence}
        )

    def align(self, recording: Recording) -> tuple[Recording, float]:
        """Return the recording with word times, and the share of its text that Whisper recognised.

        Raises `SlipstreamError` when Whisper recognises another text, or the audio cannot be read.
        """
        timed = self._words(recording)
        if not timed:
            raise SlipstreamError(f"{recording.audio}: Whisper recognises no words in it")
        words, shared = retime(recording.text, timed, recording.lang)
        return replace(recording, words=words, phones=()), shared

    def _words(self, recording: Recording) -> list[Word]:
        language = recording.lang.partition("-")[0]
        try:
            segments, _ = self._model.transcribe(
                load(recording.audio, RATE), language=language, word_timestamps=True, condition_on_previous_text=False
            )
            parts = [word for segment in segments for word in segment.words or ()]
        except ValueError as error:  # a language that Whisper does not have
            raise SlipstreamError(f"{recording.audio}: {error}") from error
        found = [Word(p.word.strip(), float(p.start), float(p.end), float(p.probability)) for p in parts]
        return [word for word in found if word.text]
