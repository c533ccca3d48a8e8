"""Stand-ins for tests: a tokenizer trained on made-up sentences, and Runners whose words follow from what they hear."""

from __future__ import annotations

import copy
import functools
import io
import math
import tempfile
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from slipstream.arrays import BoolArray, FloatArray
from slipstream.engine.session import Session, SessionOptions, SlotOp, StreamFormat
from slipstream.events import Event, Word
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.runner import State, StepOutput
from slipstream.model.text import Tokenizer

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "she sells sea shells by the sea shore, and he doesn't mind",
    "l'été dernier, nous sommes allés à la plage près de Saint-Malo",
    "où êtes-vous né? je ne sais pas, répondit-elle; c'était à l'hôpital",
    "What a day! Numbers such as one, two, three and twenty-four are words too.",
    "Speech becomes text while you are speaking, word after word after word",
    "garçon, naïve, cœur, forêt, aiguë, ça va bien",
]


def tokenizer_proto(**options: object) -> bytes:
    """A SentencePiece model laid out as the published ones are: ids 0 to 3 special, pad 3, bytes as a fallback."""
    proto = io.BytesIO()
    settings: dict[str, object] = {
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
    """The file of the tokenizer above, made once for a run of the tests."""
    path = Path(tempfile.mkdtemp(prefix="slipstream-tests-")) / "tokenizer.model"
    path.write_bytes(tokenizer_proto())
    return path


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer(tokenizer_path())


# ------------------------------------------------------------------------------------- a language made of levels

FRAME_SAMPLES = 1920
FRAME_RATE = 12.5
LEXICON = ["fox", "dog", "sea", "l'été", "doesn't", "répondit", "hôpital", "Saint-Malo,", "word", "twenty-four", "né?"]
LEVEL_STEP = 0.02


def sound_of(word: str, frames: float) -> FloatArray:
    """A word as the ScriptRunner hears it: a steady level, its own for each word, for `frames` frames."""
    level = (LEXICON.index(word) + 1) * LEVEL_STEP
    return np.full(round(frames * FRAME_SAMPLES), level, np.float32)


def silence(frames: float) -> FloatArray:
    return np.zeros(round(frames * FRAME_SAMPLES), np.float32)


def speech(seed: int, words: int) -> FloatArray:
    """A made-up recording: words and pauses of random length, not aligned to frames, and an odd number of samples."""
    random = np.random.default_rng(seed)
    pieces = [silence(random.uniform(0, 5))]
    last = -1
    for _ in range(words):
        # Never the same word twice in a row without a pause: a level that goes on is one word that goes on.
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


class ScriptRunner:
    """A Runner whose text is a pure function of what its slot has heard since its last reset.

    It writes the word of each new level, `delay_frames` late, as training places it. Every token's log-probability is
    drawn from a hash of all the slot has heard, so that a single wrong, lost or foreign frame changes the confidence of
    every later word. The pause heads say how long it has been silent. `step_seconds`: what a step costs.

    It fails on purpose: `mute_after` frames since a reset it writes pads only, `loop_after` it writes one word for
    ever, `crash_after` steps it raises.
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

    def reset(self, slots: Sequence[int]) -> None:
        self.threads.add(threading.get_ident())
        for slot in slots:
            self._states[slot] = _SlotState()

    def step(self, pcm_BS: FloatArray, active_B: BoolArray) -> StepOutput:
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
            token_B[slot], logprob_B[slot] = self._hear(state, pcm_BS[slot])
            pause_BH[slot] = min(1.0, state.silent / 8)
        return StepOutput(token_B, logprob_B, pause_BH)

    def snapshot(self, slot: int) -> State:
        return copy.deepcopy(self._states[slot])

    def restore(self, slot: int, state: State) -> None:
        assert isinstance(state, _SlotState)
        self._states[slot] = copy.deepcopy(state)

    def _hear(self, state: _SlotState, frame_S: FloatArray) -> tuple[int, float]:
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


def drive(
    session: Session, runner: ScriptRunner, chunks: Iterable[FloatArray], finish: bool = True, slot: int = 0
) -> list[Event]:
    """Run one session without engine or thread, each chunk heard before the next is sent; gives all its events."""
    session.admit(slot)
    events: list[Event] = []
    for chunk in chunks:
        session.push(chunk)
        events += run(session, runner)
    if finish:
        session.finish(now=0.0)
        events += run(session, runner)
    return events


def run(session: Session, runner: ScriptRunner, now: float = 0.0, steps: float = math.inf) -> list[Event]:
    """Step one session for as long as it has something to do, or so many steps; its new events."""
    assert session.slot is not None
    pcm_BS = np.zeros((runner.slots, FRAME_SAMPLES), np.float32)
    active_B = np.arange(runner.slots) == session.slot
    while session.ready and steps > 0:
        apply_ops(session, runner)
        session.fill(pcm_BS[session.slot])
        output = runner.step(pcm_BS, active_B)
        session.advance(
            int(output.token_B[session.slot]),
            float(output.logprob_B[session.slot]),
            output.pause_BH[session.slot].tolist(),
            now,
        )
        apply_ops(session, runner)
        steps -= 1
    events, session.events = session.events, []
    return events


def apply_ops(session: Session, runner: ScriptRunner) -> None:
    assert session.slot is not None
    for op in session.take_ops():
        if op is SlotOp.RESET:
            runner.reset([session.slot])
        elif op is SlotOp.SNAPSHOT:
            session.saved = runner.snapshot(session.slot)
        else:
            runner.restore(session.slot, session.saved)


def new_session(runner: ScriptRunner, silence_frames: int = 0, **options: Any) -> Session:
    """A session for this runner, its partial words left out."""
    format = StreamFormat(tiny_tokenizer(), FRAME_SAMPLES, FRAME_RATE, runner.delay_frames, silence_frames)
    return Session(format, SessionOptions(**({"partials": False} | options)))


def words_of(events: Iterable[Event]) -> list[Word]:
    return [event for event in events if isinstance(event, Word)]


def random_chunks(audio_S: FloatArray, random: np.random.Generator, typical: float) -> Iterator[FloatArray]:
    """The audio in pieces whose lengths have nothing to do with frames; some are empty."""
    position = 0
    while position < len(audio_S):
        size = int(random.exponential(typical))
        yield audio_S[position : position + size]
        position += size
