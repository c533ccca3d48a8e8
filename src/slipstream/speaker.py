"""The Python interface of text to speech: `load_speaker`, and what it returns."""

from __future__ import annotations

import contextlib
import io
import math
import threading
import wave
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio import load
from slipstream.checkpoints.sources import Ref
from slipstream.checkpoints.voices import VOICES, find_voice, read_embedding, voice_names
from slipstream.engine.reading import Audio, SpeechOptions
from slipstream.engine.speech import SpeechEngine, SpeechSession, SpeechSnapshot
from slipstream.errors import AudioError, BackendError, ConfigError, SessionClosed
from slipstream.events import Word
from slipstream.model.config import SamplingConfig
from slipstream.model.speech import SpeechRunner, Voice
from slipstream.model.text import Tokenizer
from slipstream.model.tts_config import SpeechSampling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from typing_extensions import Unpack

    from slipstream.checkpoints.sources import Origin

CUT_FRAMES = 2
"""Last codes of a recording that are not used: they depend on audio that follows them."""


@dataclass(frozen=True)
class Speech:
    """A text that was read aloud.

    Attributes:
        samples: float32 `[S]` within [-1, 1].
        sample_rate: In Hz.
        words: The words, with their times.
    """

    samples: FloatArray
    sample_rate: int
    words: tuple[Word, ...]

    def save(self, path: str | Path) -> None:
        """Write a WAV file of 16 bits.

        Args:
            path: Where to write.
        """
        Path(path).write_bytes(self.to_wav())

    def to_wav(self) -> bytes:
        """Return a WAV file of 16 bits."""
        file = io.BytesIO()
        with wave.open(file, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(self.sample_rate)
            out.writeframes(to_pcm16(self.samples))
        return file.getvalue()


def to_pcm16(samples: FloatArray) -> bytes:
    """Convert samples to 16-bit integers, little-endian.

    Args:
        samples: float32 within [-1, 1].

    Returns:
        Two bytes for each sample.
    """
    return np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


class Speaker:
    """A text-to-speech model that is ready to read several texts at the same time.

    Close it, or use it as a context manager.

    Args:
        runner: The model.
        tokenizer: Its tokenizer.
        model: What to call it.
        voices: A folder, or a repository on the Hub, of the voices that are given by name.
        max_waiting: Texts that may wait for a slot.

    Example:
        >>> with slipstream.load_speaker("kyutai/tts-1.6b-en_fr") as speaker:  # doctest: +SKIP
        ...     speaker.say("Good morning.", voice="voice-donations/robert.wav").save("out.wav")  # style: allow
    """

    def __init__(
        self,
        runner: SpeechRunner,
        tokenizer: Tokenizer,
        *,
        model: str = "",
        voices: Ref = VOICES,
        max_waiting: int = 64,
    ) -> None:
        self.model, self.voices = model, voices
        self._runner = runner
        self.engine = SpeechEngine(runner, tokenizer, max_waiting=max_waiting)
        self._known: dict[str, Voice] = {}

    @property
    def sample_rate(self) -> int:
        """Of the audio, in Hz."""
        return self._runner.config.codec.sample_rate

    @property
    def slots(self) -> int:
        """Texts that are read at the same time."""
        return self._runner.slots

    def voice(self, name: Ref | Voice | Sequence[Ref]) -> Voice:
        """Return a voice. It is read once.

        Args:
            name: The name of a voice, or the path of its file; two of them for a dialogue. For a model that continues a
                recording, the path of any audio file.

        Raises:
            CheckpointError: There is no such voice, or the file is not one of a voice.
            AudioError: The recording cannot be decoded, or is too short.
            ConfigError: The model has no dialogues.
        """
        if isinstance(name, Voice):
            return name
        if not isinstance(name, str | Path):
            parts = [self.voice(one) for one in name]  # type: ignore[union-attr]
            if not parts:
                raise ConfigError("voice has no names: give one, or None")
            if not all(part.embeddings for part in parts):
                raise ConfigError("this model has one voice: it continues a recording")
            embeddings = tuple(embedding for part in parts for embedding in part.embeddings)
            return replace(parts[0], name=" and ".join(part.name for part in parts), embeddings=embeddings)
        key = str(name)
        if key not in self._known:
            self._known[key] = self._read(name)
        return self._known[key]

    def named_voice(self, name: str) -> Voice:
        """Return a voice of the folder or repository `voices`, and no other file.

        Args:
            name: Its name.

        Returns:
            The voice. It is read once.

        Raises:
            CheckpointError: There is no such voice.
        """
        if (key := f"voices:{name}") not in self._known:
            self._known[key] = self._read(name, anywhere=False)
        return self._known[key]

    def voice_names(self) -> list[str]:
        """Return the names of the voices in the folder `voices`; none for a repository."""
        return voice_names(self._runner.config, self.voices)

    def _read(self, name: str | Path, anywhere: bool = True) -> Voice:
        config = self._runner.config
        path = find_voice(name, config, self.voices, anywhere=anywhere)
        if config.speakers_by_condition:
            return replace(read_embedding(path), name=str(name))
        codes = self._runner.encode(load(path, config.codec.sample_rate))[:, :-CUT_FRAMES]
        if not codes.shape[1]:
            least = (config.codec.blank_frames + CUT_FRAMES + 1) / config.codec.frame_rate
            raise AudioError(f"{path} is too short for a voice: give 10 s of speech, and at least {least:g} s")
        return Voice(str(name), prefix=codes)

    def open(
        self,
        voice: Ref | Voice | Sequence[Ref] | None = None,
        options: SpeechOptions | None = None,
        *,
        snapshot: SpeechSnapshot | None = None,
        wake: Callable[[], None] | None = None,
    ) -> SpeechSession:
        """Open a session: text goes in as it is written, audio and words come out.

        Args:
            voice: As for `voice`; None for what the model does without one.
            options: How the text is read.
            snapshot: A copy of a session to continue, instead of a voice and options.
            wake: Called when there are new events, in another thread. It must be fast.

        Returns:
            The session. Iterate over it; end its text with `end()`, stop it with `cancel()`.

        Raises:
            CheckpointError: There is no such voice.
            ConfigError: The voice is not one for this model.
            Overloaded: Too many sessions wait for a slot.
            SessionClosed: The speaker is closed.
            EngineError: A step has failed.
        """
        found = None if voice is None else self.voice(voice)
        return self.engine.open(found, options, snapshot=snapshot, wake=wake)

    def say(
        self,
        text: str | Sequence[str],
        voice: Ref | Voice | Sequence[Ref] | None = None,
        options: SpeechOptions | None = None,
    ) -> Speech:
        """Read a text aloud.

        Args:
            text: The text, or the turns of a dialogue. `<break time="0.5s"/>` is a pause, of 60 s at most.
            voice: As for `open`.
            options: How the text is read. By default the audio is as long as the text needs.

        Returns:
            The audio, and the time of each word.

        Raises:
            SlipstreamError: As for `open`.
        """
        with self.open(voice, options or SpeechOptions(max_seconds=math.inf)) as session:
            turns = [text] if isinstance(text, str) else list(text)
            for turn in turns:
                session.feed(turn)
                session.turn()
            session.end()
            events = list(session)
        frames = [event.samples for event in events if isinstance(event, Audio)]
        samples = np.concatenate(frames) if frames else np.zeros(0, np.float32)
        return Speech(samples, self.sample_rate, tuple(event for event in events if isinstance(event, Word)))

    def play(
        self,
        pieces: Iterable[str],
        play: Callable[[FloatArray], object],
        voice: Ref | Voice | Sequence[Ref] | None = None,
        options: SpeechOptions | None = None,
    ) -> Playback:
        """Speak a text in the background while it is being written, such as the answer of a language model.

        Args:
            pieces: The text, cut anywhere. It is read in a separate thread.
            play: Called with each frame of 80 ms, float32 `[S]`, in another thread. It returns when the frame has been
                played, or when the device has room for more.
            voice: As for `open`.
            options: How the text is read.

        Returns:
            The speech. `stop()` interrupts it, `wait()` waits for its end.

        Raises:
            SlipstreamError: As for `open`.

        Example:
            >>> answer = speaker.play(language_model(), device.write)  # doctest: +SKIP
            >>> spoken = answer.stop()  # when the user interrupts  # doctest: +SKIP
        """
        return Playback(self.open(voice, options), pieces, play)

    def close(self) -> None:
        """Stop: open sessions end with `SessionClosed`."""
        self.engine.close()

    def __enter__(self) -> Speaker:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class Playback:
    """A text that is spoken in the background.

    Args:
        session: The session, which this object ends.
        pieces: As for `Speaker.play`.
        play: As for `Speaker.play`.

    Example:
        >>> answer = speaker.play(language_model(), device.write)  # doctest: +SKIP
        >>> answer.wait()  # doctest: +SKIP
    """

    def __init__(self, session: SpeechSession, pieces: Iterable[str], play: Callable[[FloatArray], object]) -> None:
        self._session, self._pieces, self._play = session, pieces, play
        self._words: list[Word] = []
        self._reached = -1.0
        """Start of the last frame that was given to `play`, in seconds."""
        self._error: Exception | None = None
        self._voice = threading.Thread(target=self._try, args=(self._speak,), daemon=True)
        threading.Thread(target=self._try, args=(self._write,), daemon=True).start()
        self._voice.start()

    def stop(self) -> str:
        """Stop within a frame. The slot is then free.

        Returns:
            The words whose audio has begun, separated by spaces.
        """
        self._session.cancel()
        return " ".join(word.text for word in self._words if word.start <= self._reached)

    def wait(self) -> None:
        """Wait until everything has been played, or the speech was stopped.

        Raises:
            Exception: What `pieces` or `play` has raised, or what ended the session.
        """
        self._voice.join()
        if self._error is not None:
            raise self._error

    def _try(self, part: Callable[[], None]) -> None:
        try:
            part()
        except Exception as error:
            self._error = self._error or error
            self._session.cancel()

    def _write(self) -> None:
        with contextlib.suppress(SessionClosed):  # stopped; what else ends a session is raised in the other thread
            for piece in self._pieces:
                self._session.feed(piece)
            self._session.end()

    def _speak(self) -> None:
        for event in self._session:
            if isinstance(event, Audio):
                self._reached = event.start
                self._play(event.samples)
            else:
                self._words.append(event)


def load_speaker(
    model: Ref = "kyutai/tts-1.6b-en_fr",
    *,
    device: str = "auto",
    dtype: str = "auto",
    slots: int = 1,
    voices: Ref = VOICES,
    temperature: float | None = None,
    guidance: float = 2.0,
    codebooks: int | None = None,
    **origin: Unpack[Origin],
) -> Speaker:
    """Load a text-to-speech model ready to read `slots` texts at the same time. It needs the extra `torch`.

    Args:
        model: A folder, or a repository id.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`: a GPU if there is one, else the CPU.
        dtype: Type of the LM's weights: `float32`, `bfloat16`, or `auto`: `bfloat16` on CUDA.
        slots: Texts that are read at the same time.
        voices: A folder, or a repository, of the voices that are given by name.
        temperature: Temperature of text and audio, 0 for the most likely tokens; the model's own by default.
        guidance: How strictly the model follows the voice and the text. A distilled model takes 1 to 4 in steps of 0.5.
        codebooks: Codebooks to generate, 8 to 32. More sound better, and are slower. All by default.
        **origin: Where single parts come from: see `checkpoints.sources.resolve`.

    Returns:
        The speaker. Close it, or use it as a context manager.

    Raises:
        BackendError: PyTorch cannot use the device, or is not installed.
        ConfigError: A setting or the model's configuration is invalid.
        CheckpointError: A file cannot be found or read.

    Example:
        >>> with slipstream.load_speaker(slots=4) as speaker:  # doctest: +SKIP
        ...     speech = speaker.say("Good morning.", voice="voice-donations/robert.wav")  # style: allow
    """
    from slipstream.backends import BACKENDS
    from slipstream.checkpoints.speech import read_speech, resolve_speech

    if not BACKENDS["torch"].installed:
        raise BackendError("text to speech needs PyTorch: pip install 'slipstream-stt[torch]'")
    from slipstream.backends.torch.speech_opening import open_speech_runner

    checkpoint = read_speech(resolve_speech(model, **origin))
    sampling = checkpoint.config.sampling
    if temperature is not None:
        sampling = SpeechSampling(
            text=SamplingConfig(temperature=temperature, top_k=sampling.text.top_k),
            audio=SamplingConfig(temperature=temperature, top_k=sampling.audio.top_k),
        )
    runner = open_speech_runner(
        checkpoint,
        device=device,
        dtype=dtype,
        slots=slots,
        sampling=sampling,
        guidance=guidance,
        codebooks=codebooks,
    )
    return Speaker(runner, Tokenizer(checkpoint.tokenizer), model=str(model), voices=voices)
