"""A recording of two sentences as tones, and a runner that transcribes it, also after a browser has resampled it."""

from __future__ import annotations

import threading
import wave
from pathlib import Path

import numpy as np
from tests.fakes import ScriptRunner, tiny_tokenizer

from slipstream.arrays import BoolArray, FloatArray
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.runner import StepOutput

FIRST = ["Speech", "becomes", "text", "while", "you", "are", "speaking,"]
SECOND = ["l'été", "dernier,", "nous", "sommes", "allés"]
WORD_SECONDS, GAP_SECONDS, PAUSE_SECONDS = 0.24, 0.16, 1.6
MICROPHONE_RATE = 48_000


class NarratingRunner(ScriptRunner):
    """Writes the next word of a text at each onset of sound, so that a browser's resampling changes nothing."""

    def __init__(self, step_seconds: float = 0.0) -> None:
        super().__init__(slots=1, step_seconds=step_seconds)
        self._text = [tiny_tokenizer().encode(word) for word in FIRST + SECOND]
        self.written = 0

    def reset(self, slots: object) -> None:
        self._frame = self._silent = self._position = self._free = 0
        self._plan: dict[int, int] = {}

    def snapshot(self, slot: int) -> object:
        return (self._frame, self._silent, self._position, self._free, dict(self._plan))

    def restore(self, slot: int, state: object) -> None:
        assert isinstance(state, tuple)
        self._frame, self._silent, self._position, self._free, self._plan = state

    def step(self, pcm_BS: FloatArray, active_B: BoolArray) -> StepOutput:
        threading.Event().wait(self.step_seconds)
        if np.abs(pcm_BS[0]).max() > 0.1:
            if self._silent and self._position < len(self._text):
                tokens = [WORD_ID, *self._text[self._position]]
                first = max(self._frame + self.delay_frames - 1, self._free)
                self._plan.update(enumerate(tokens, start=first))
                self._free = first + len(tokens)
                self._position += 1
                self.written = max(self.written, self._position)
            self._silent = 0
        else:
            self._silent += 1
        self._frame += 1
        pause_BH = np.full((1, 4), min(1.0, self._silent / 12), np.float32)
        return StepOutput(np.array([self._plan.pop(self._frame, PAD_ID)]), np.full(1, -0.05, np.float32), pause_BH)


def write_wav(path: Path, audio_SC: FloatArray, rate: int) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setparams((audio_SC[0].size, 2, rate, 0, "NONE", ""))
        out.writeframes((audio_SC * 32767).round().astype("<i2").tobytes())
    return path


def write_narration(path: Path) -> Path:
    """Write the two sentences, a burst of tone for each word."""

    def tone(seconds: float, level: float) -> FloatArray:
        time = np.arange(round(seconds * MICROPHONE_RATE)) / MICROPHONE_RATE
        return (level * np.sin(2 * np.pi * 300 * time)).astype(np.float32)

    pieces = [tone(0.5, 0)]
    for sentence in (FIRST, SECOND):
        for _ in sentence:
            pieces += [tone(WORD_SECONDS, 0.5), tone(GAP_SECONDS, 0)]
        pieces.append(tone(PAUSE_SECONDS, 0))
    return write_wav(path, np.concatenate(pieces), MICROPHONE_RATE)
