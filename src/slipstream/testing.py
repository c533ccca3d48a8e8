"""Fakes for tests: a runner with predictable text, a small tokenizer, and small models with random weights.

Use them to test code that uses Slipstream, without downloads and without the cost of a model. Requires only the core
package. The tokenizer is trained when it is first used, in less than a second.

Example:
    >>> from slipstream import Transcriber
    >>> from slipstream.testing import ScriptRunner, sound_of, tiny_tokenizer
    >>> with Transcriber(ScriptRunner(), tiny_tokenizer(), model="script") as transcriber:
    ...     print(transcriber.transcribe(sound_of("fox", frames=4), sample_rate=24_000).text)
    fox
"""

from __future__ import annotations

import copy
import functools
import io
import math
import tempfile
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from slipstream.arrays import BoolArray, FloatArray, IntArray
from slipstream.model.config import (
    PAD_ID,
    WORD_ID,
    CodecConfig,
    ConditionerConfig,
    DepthConfig,
    LMConfig,
    MelConfig,
    SamplingConfig,
    STTConfig,
    TransformerConfig,
    WhisperConfig,
    WhisperDecoderConfig,
)
from slipstream.model.names import Shapes, codec_shapes, lm_shapes
from slipstream.model.runner import CANDIDATES, Candidates, State, Steering, StepOutput, StepwiseRunner
from slipstream.model.text import Tokenizer
from slipstream.model.tts_config import SpeechSampling, TTSConfig

Arrays = dict[str, npt.NDArray[Any]]

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "she sells sea shells by the sea shore, and he doesn't mind",
    "l'été dernier, nous sommes allés à la plage près de Saint-Malo",
    "où êtes-vous né? je ne sais pas, répondit-elle; c'était à l'hôpital",
    "What a day! Numbers such as one, two, three and twenty-four are words too.",
    "Speech becomes text while you are speaking, word after word after word",
    "garçon, naïve, cœur, forêt, aiguë, ça va bien",
]


def tokenizer_proto(**options: Any) -> bytes:
    """Train a SentencePiece model with the layout of the published ones: ids 0 to 3 special, pad 3, byte fallback.

    Args:
        **options: Settings of `SentencePieceTrainer` that replace the defaults.
    """
    proto = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": "unigram",
        "vocab_size": 400,
        "byte_fallback": True,
        "character_coverage": 0.98,
        "hard_vocab_limit": False,
        "normalization_rule_name": "identity",
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": 3,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4), model_writer=proto, **(settings | options)
    )
    return proto.getvalue()


@functools.cache
def tokenizer_path() -> Path:
    """Return the file of the small tokenizer. It is trained once per process."""
    path = Path(tempfile.mkdtemp(prefix="slipstream-testing-")) / "tokenizer.model"
    path.write_bytes(tokenizer_proto())
    return path


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    """Return a tokenizer of 400 tokens."""
    return Tokenizer(tokenizer_path())


# -------------------------------------------------------------------------------------------------- scripted runner

FRAME_SAMPLES = 1920
FRAME_RATE = 12.5
LEXICON = ["fox", "dog", "sea", "l'été", "doesn't", "répondit", "hôpital", "Saint-Malo,", "word", "twenty-four", "né?"]
LEVEL_STEP = 0.02


def sound_of(word: str, frames: float) -> FloatArray:
    """Return audio that `ScriptRunner` transcribes as `word`, one of `LEXICON`: a constant level."""
    level = (LEXICON.index(word) + 1) * LEVEL_STEP
    return np.full(round(frames * FRAME_SAMPLES), level, np.float32)


def silence(frames: float) -> FloatArray:
    """Return `frames` frames of silence."""
    return np.zeros(round(frames * FRAME_SAMPLES), np.float32)


def speech(seed: int, words: int) -> FloatArray:
    """Return a recording of words and pauses of random length, which are not aligned to frames."""
    random = np.random.default_rng(seed)
    pieces = [silence(random.uniform(0, 5))]
    last = -1
    for _ in range(words):
        # A level that continues is one word, so that a word cannot follow itself without a pause.
        last = int(random.choice([number for number in range(len(LEXICON)) if number != last]))
        pieces.append(sound_of(LEXICON[last], random.uniform(2, 6)))
        if random.random() < 0.4:
            pieces.append(silence(random.choice([1.5, 4.0, 20.0])))
    return np.concatenate(pieces)


@dataclass
class _SlotState:
    frames: int = 0
    symbol: int = 0
    silent: int = 0
    history: int = 0
    free: int = 1
    plan: dict[int, int] = field(default_factory=dict)


class ScriptRunner(StepwiseRunner):
    """A Runner whose text is a pure function of the audio of its slot since the last reset.

    It writes the word of each new level, `delay_frames` late, as a trained model does. The log-probability of each
    token comes from a hash of all audio of the slot, so that one wrong, lost or foreign frame changes the confidence of
    every later word. The pause heads give the length of the silence.

    Args:
        slots: Number of streams.
        delay_frames: Frames by which the text lags.
        pause_heads: Number of pause heads.
        step_seconds: Duration of a step.
        mute_after: Frames since a reset after which the slot writes no more text.
        loop_after: Frames since a reset after which the slot repeats one word.
        crash_after: Steps after which a step raises `RuntimeError`.

    Attributes:
        steps: Number of steps so far.
        threads: Threads that called `reset` or `step`.
    """

    frame_samples = FRAME_SAMPLES
    frame_rate = FRAME_RATE

    def __init__(
        self,
        slots: int = 1,
        delay_frames: int = 6,
        pause_heads: int = 4,
        step_seconds: float = 0.0,
        mute_after: float = math.inf,
        loop_after: float = math.inf,
        crash_after: float = math.inf,
    ) -> None:
        self.slots = slots
        self.delay_frames = delay_frames
        self.pause_heads = pause_heads
        self.step_seconds = step_seconds
        self.mute_after = mute_after
        self.loop_after = loop_after
        self.crash_after = crash_after
        self.steps = 0
        self.threads: set[int] = set()
        self._words = [tiny_tokenizer().encode(word) for word in LEXICON]
        self._states: list[_SlotState | None] = [None] * slots

    def reset(self, slots: Sequence[int], first_frame: int = 0) -> None:
        self.threads.add(threading.get_ident())
        for slot in slots:
            self._states[slot] = _SlotState()

    def step(self, pcm_BS: FloatArray, active_B: BoolArray, steering: Steering | None = None) -> StepOutput:
        self.threads.add(threading.get_ident())
        self.steps += 1
        if self.steps > self.crash_after:
            raise RuntimeError("the device is on fire")
        if self.step_seconds:
            time.sleep(self.step_seconds)
        token_B = np.full(self.slots, PAD_ID, np.int64)
        logprob_B = np.full(self.slots, np.nan, np.float32)
        pause_BH = np.full((self.slots, self.pause_heads), np.nan, np.float32)
        for slot in np.flatnonzero(active_B):
            state = self._states[slot]
            assert state is not None, f"slot {slot} was stepped before its first reset"
            token_B[slot], logprob_B[slot] = self._transcribe(state, pcm_BS[slot])
            pause_BH[slot] = min(1.0, state.silent / 8)
        found = None if steering is None else self._candidates(token_B, logprob_B)
        return StepOutput(token_B, logprob_B, pause_BH, found)

    def force(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """Change nothing: the text depends on the audio only."""

    def _candidates(self, token_B: IntArray, logprob_B: FloatArray) -> Candidates:
        """The text is certain: biases do not change it, and other tokens are as unlikely as can be."""
        token_BK = (token_B[:, None] + np.arange(CANDIDATES)) % tiny_tokenizer().vocab_size
        logprob_BK = np.full((self.slots, CANDIDATES), -1e3, np.float32)
        logprob_BK[:, 0] = logprob_B
        return Candidates(token_BK, logprob_BK, token_B, logprob_B)

    def snapshot(self, slot: int) -> State:
        return copy.deepcopy(self._states[slot])

    def restore(self, slot: int, state: State) -> None:
        assert isinstance(state, _SlotState)
        self._states[slot] = copy.deepcopy(state)

    def _transcribe(self, state: _SlotState, frame_S: FloatArray) -> tuple[int, float]:
        symbol = round(float(frame_S.max()) / LEVEL_STEP)
        state.history = zlib.crc32(frame_S.tobytes(), state.history)
        state.silent = 0 if symbol else state.silent + 1
        if symbol and symbol != state.symbol:
            first = max(state.frames + self.delay_frames, state.free)
            state.plan.setdefault(first - 1, WORD_ID)
            state.plan.update(enumerate(self._words[(symbol - 1) % len(self._words)], start=first))
            state.free = first + len(self._words[(symbol - 1) % len(self._words)])
        state.symbol = symbol
        state.frames += 1
        token = state.plan.pop(state.frames, PAD_ID)
        if state.frames > self.mute_after:
            token = PAD_ID
        if state.frames > self.loop_after:
            token = self._words[0][state.frames % len(self._words[0])]
        return token, -(state.history % 1000) / 5000


# ----------------------------------------------------------------------------------------------------- small models


def codec_config(**changes: object) -> CodecConfig:
    """Return a narrow Mimi with all its parts. Its ring wraps after six frames. `changes`: fields of `CodecConfig`."""
    fields: dict[str, object] = {
        "num_filters": 4,
        "transformer": TransformerConfig(
            dim=24,
            num_heads=3,
            num_layers=2,
            ffn_dim=40,
            context=11,
            max_period=10_000.0,
            norm="layer_norm",
            gated=False,
            layer_scale=True,
        ),
        "codebook_dim": 10,
        "codebook_size": 32,
        "num_codebooks": 6,
    }
    return CodecConfig.model_validate(fields | changes)


def mel_codec_config() -> CodecConfig:
    """Return a small codec with a log-mel front end."""
    return codec_config(mel=MelConfig(n_mels=20), ratios=(2, 2))


def whisper_codec_config(lookahead: int = 4) -> CodecConfig:
    """Return a narrow Whisper encoder. Its rings wrap after five frames, its output is three frames late."""
    whisper = WhisperConfig(n_mels=20, dim=24, num_heads=3, num_layers=3, ffn_dim=40, context=11, lookahead=lookahead)
    return CodecConfig(whisper=whisper, codebook_dim=10, codebook_size=32, num_codebooks=6)


def lm_config(**changes: object) -> LMConfig:
    """Return a small LM with pause heads, a condition and unusual sizes. `changes`: fields of `LMConfig`."""
    fields: dict[str, object] = {
        "transformer": TransformerConfig(
            dim=42,
            num_heads=3,
            num_layers=2,
            ffn_dim=50,
            context=7,
            max_period=100_000.0,
            norm="rms_norm",
            gated=True,
        ),
        "text_vocab": 40,
        "audio_vocab": 32,
        "num_codebooks": 5,
        "pause_heads": 4,
        "conditioners": (
            ConditionerConfig(name="delay", kind="continuous", dim=8, scale_factor=10.0, max_period=100.0),
        ),
    }
    return LMConfig.model_validate(fields | changes)


def decoder_lm_config(vectors: int = 1, languages: tuple[str, ...] = (), **changes: object) -> LMConfig:
    """Return a small Whisper decoder as the LM, whose text and audio rings wrap early.

    Args:
        vectors, languages: As for `WhisperDecoderConfig`.
        changes: Fields of `LMConfig`.
    """
    fields: dict[str, object] = {
        "transformer": TransformerConfig(
            dim=24,
            num_heads=3,
            num_layers=2,
            ffn_dim=40,
            context=5,
            max_period=10_000.0,
            norm="layer_norm",
            gated=False,
            positions="none",
        ),
        "text_vocab": 8,  # so few that PAD and the mark of a word come often
        "conditioners": (),
        "whisper": WhisperDecoderConfig(
            audio_context=7, prefix=2, num_positions=11, vectors=vectors, languages=languages
        ),
    }
    return lm_config(**fields | changes)


CODECS = {"waveform": codec_config(), "log-mel": mel_codec_config(), "whisper": whisper_codec_config()}
"""A small codec with each kind of encoder."""


def small_config(*, codec: str = "waveform", decoder: bool = False, **lm_changes: Any) -> STTConfig:
    """Return a small model.

    Args:
        codec: A name in `CODECS`.
        decoder: Whether the LM is a Whisper decoder.
        lm_changes: Fields of `LMConfig`; of a decoder also `vectors` and `languages`.
    """
    return STTConfig(
        codec=CODECS[codec],
        lm=decoder_lm_config(**lm_changes) if decoder else lm_config(**lm_changes),
        delay_seconds=0.5,
        delay_frames=6,
    )


def tts_lm_config(**changes: object) -> LMConfig:
    """Return a small LM that writes audio, with delays, a second text stream, a voice and shared weights.

    `changes`: fields of `LMConfig`.
    """
    transformer = lm_config().transformer
    depth = DepthConfig(
        transformer=transformer.model_copy(
            update={"dim": 24, "ffn_dim": 20, "context": 4, "max_period": 10_000.0, "positions": "none"}
        ),
        num_codebooks=4,
        schedule=(0, 1, 2, 2),
        low_rank=6,
    )
    fields: dict[str, object] = {
        "transformer": transformer.model_copy(update={"cross_attention": True, "context": 20}),
        "text_vocab": 400,
        "audio_vocab": 32,
        "num_codebooks": 4,
        "conditioners": (
            ConditionerConfig(name="control", kind="lut", dim=42, num_bins=1, possible_values=("ok",)),
            ConditionerConfig(name="cfg", kind="lut", dim=4, num_bins=2, possible_values=("1.0", "2.0")),
            ConditionerConfig(name="speaker_wavs", kind="tensor", dim=8, fuse="cross"),
        ),
        "delays": (0, 0, 2, 2, 2),
        "demux_text": True,
        "depth": depth,
        "cross_position_scale": 1.0,
    }
    return LMConfig.model_validate(fields | changes)


def small_tts_config(**lm_changes: object) -> TTSConfig:
    """Return a small text-to-speech model. `lm_changes`: fields of `LMConfig`."""
    lm = tts_lm_config(**lm_changes)
    return TTSConfig(
        codec=codec_config(num_codebooks=4),
        lm=lm,
        delay_seconds=0.4,
        second_stream_ahead=2 if lm.demux_text else 0,
        max_speakers=2,
        sampling=SpeechSampling(text=SamplingConfig(), audio=SamplingConfig()),
        model_id={"sig": "5117e570", "epoch": 1},
    )


def random_weights(shapes: Shapes, seed: int = 0) -> Arrays:
    """Return weights that keep the output of every layer about as large as its input."""
    rng = np.random.default_rng(seed)
    weights: Arrays = {}
    for name, shape in shapes.items():
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        fan_in = shape[-1] if name.startswith("depth.") else fan_in
        if name.endswith("cluster_usage"):
            value = rng.uniform(0.5, 2.0, shape)
        elif name.endswith(("embedding_sum", "_emb.weight", "learnt_padding")):
            value = rng.standard_normal(shape)
        elif (len(shape) == 1 or "out_norms" in name) and name.endswith("weight"):
            value = 1 + 0.1 * rng.standard_normal(shape)  # a norm
        elif name.endswith(("scale1", "scale2")):
            value = rng.uniform(0.2, 0.8, shape)
        elif name.endswith("bias"):
            value = 0.1 * rng.standard_normal(shape)
        elif name.startswith(("text_linear", "pause_heads")):
            value = 3 * rng.standard_normal(shape) / np.sqrt(shape[-1])  # tokens that vary
        else:
            gain = 1.0 if name.startswith("depth.") else 1.5
            value = gain * rng.standard_normal(shape) / np.sqrt(fan_in)
        weights[name] = value.astype(np.float32)
    return weights


def random_model(config: STTConfig | TTSConfig, seed: int = 0) -> tuple[Arrays, Arrays]:
    """Return the weights of the LM and of the codec under canonical names."""
    return random_weights(lm_shapes(config.lm), seed), random_weights(codec_shapes(config.codec), seed + 1)


def noise_and_tones(seconds: float, seed: int = 0, sample_rate: int = 24_000) -> FloatArray:
    """Return audio with structure, float32 `[S]` within -1 to 1: gliding tones over noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    audio = 0.05 * rng.standard_normal(time.shape)
    for _ in range(3):
        frequency = rng.uniform(100, 3000) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.2, 2) * time))
        envelope = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.3, 3) * time + rng.uniform(0, 6))
        audio += 0.25 * envelope * np.sin(2 * np.pi * np.cumsum(frequency) / sample_rate)
    clipped: FloatArray = np.clip(audio, -1, 1).astype(np.float32)
    return clipped
