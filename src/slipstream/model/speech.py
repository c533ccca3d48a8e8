"""The interface of a text-to-speech model on a device, and what a voice is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from slipstream.arrays import BoolArray, FloatArray, IntArray
from slipstream.model.runner import State
from slipstream.model.tts_config import TTSConfig

Decide = Callable[[IntArray], tuple[IntArray, IntArray]]
"""Gets the text token that the model has written for each slot, and returns the text token that each reads next, and
the audio tokens `[B, K]` that are given, `UNGENERATED` where the model writes its own."""


@dataclass(frozen=True)
class Voice:
    """A voice.

    Attributes:
        name: What it is called.
        embeddings: For a model with voices as conditions: one array `[D, T]` for each speaker, float32.
        prefix: For a model that continues a recording: its codes `[K, T]`, int64.
    """

    name: str
    embeddings: tuple[FloatArray, ...] = ()
    prefix: IntArray | None = None

    @property
    def prefix_frames(self) -> int:
        """Frames of the recording that the speech continues."""
        return 0 if self.prefix is None else int(self.prefix.shape[1])


@dataclass(frozen=True, slots=True)
class SpeechOutput:
    """The output of one step, on the host.

    Attributes:
        pcm_BS: A frame of samples for each slot, float32 within [-1, 1].
        audio_B: Which slots have audio: the active ones, once the delay of the audio is over.
    """

    pcm_BS: FloatArray
    audio_B: BoolArray


class SpeechRunner(Protocol):
    """A text-to-speech model on a device, with `slots` independent streams in one batch."""

    @property
    def config(self) -> TTSConfig:
        """The model."""
        ...

    @property
    def slots(self) -> int:
        """B, the number of streams."""
        ...

    @property
    def codebooks(self) -> int:
        """K, the codebooks that are generated."""
        ...

    @property
    def latency_steps(self) -> int:
        """Steps before the first audio: the delay of the audio, and the longest one of its codebooks."""
        ...

    def reset(self, slot: int, voice: Voice | None, seed: int) -> None:
        """Start a new stream in a slot.

        Args:
            slot: Its number.
            voice: The voice; None for what the model does without one.
            seed: Decides the tokens that are drawn.

        Raises:
            ConfigError: The voice is not one for this model.
        """
        ...

    def step(self, decide: Decide, active_B: BoolArray) -> SpeechOutput:
        """Advance the active slots by one step. The other slots do not change.

        Args:
            decide: Called once, between the text and the audio of the step.
            active_B: Which slots advance.
        """
        ...

    def snapshot(self, slot: int) -> State:
        """Copy the state of one slot, with its voice. Later steps do not change the copy."""
        ...

    def restore(self, slot: int, state: State) -> None:
        """Put a copy of a state into a slot, of this runner or of another of the same model."""
        ...

    def encode(self, pcm_S: FloatArray) -> IntArray:
        """Encode a recording: codes `[K, T]` of its frames. Safe in any thread.

        With a late encoder, the last frames are missing: their codes depend on audio after the recording.
        """
        ...
