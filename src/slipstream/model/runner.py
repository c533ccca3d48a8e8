"""The `Runner` interface, a step's output, and the base class of the backends' runners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from slipstream.arrays import BoolArray, FloatArray, IntArray
from slipstream.errors import AudioError, ConfigError
from slipstream.model.config import SamplingConfig, STTConfig

State = Any
"""The state of one slot, as `snapshot` returns it: opaque to all code but the runner's."""

CANDIDATES = 8
"""K, the number of candidates that a steered step returns for each slot."""
MAX_DELAYS = 8
"""Kinds of streams whose fresh state a runner keeps. Clients choose delays, and each state is as large as a slot."""
MAX_BIASED = 1024
"""The most tokens of one slot whose scores a step may change. Their buffers on a device have a fixed size."""


@dataclass(frozen=True, slots=True)
class Steering:
    """What changes the choice of the next text token. A step with it also returns candidates.

    A row without biases changes nothing: its slot writes the same tokens, bit for bit, as without steering.

    Attributes:
        id_BN: Text tokens, int64, different ones in a row except for entries with a bias of 0. N is at most
            `MAX_BIASED`.
        bias_BN: What is added to their scores before a token is picked, in nats, float32; 0 for entries without use.
    """

    id_BN: IntArray
    bias_BN: FloatArray

    @classmethod
    def none(cls, slots: int) -> Steering:
        """Return steering without a bias, for a step that only returns candidates."""
        return cls(np.zeros((slots, 0), np.int64), np.zeros((slots, 0), np.float32))


@dataclass(frozen=True, slots=True)
class Candidates:
    """The best text tokens of each slot. All log-probabilities are the model's, without biases.

    Attributes:
        token_BK: The `CANDIDATES` tokens with the highest scores, biases included, the best first, int64.
        logprob_BK: Their log-probabilities, float32.
        plain_B: The token with the highest score without biases, int64.
        plain_logprob_B: Its log-probability, float32.
    """

    token_BK: IntArray
    logprob_BK: FloatArray
    plain_B: IntArray
    plain_logprob_B: FloatArray

    def of(self, slot: int, token: int) -> Choice:
        """Return the choice of one slot, of which `token` was picked."""
        tokens, logprobs = self.token_BK[slot].tolist(), self.logprob_BK[slot].tolist()
        return Choice(token, tokens, logprobs, int(self.plain_B[slot]), float(self.plain_logprob_B[slot]))


@dataclass(frozen=True, slots=True)
class Choice:
    """What one slot may write in a step: a row of `Candidates`, and the token that was picked."""

    token: int
    tokens: list[int]
    logprobs: list[float]
    plain: int
    plain_logprob: float


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The output of one step, on the host. Rows of inactive slots have no meaning.

    Attributes:
        token_B: The text token of each slot, int64.
        logprob_B: Its log-probability, float32.
        pause_BH: For each pause head, the probability that no new word comes within its horizon, float32. H is 0 for a
            model without pause heads.
        candidates: What a step with `Steering` returns in addition.
    """

    token_B: IntArray
    logprob_B: FloatArray
    pause_BH: FloatArray
    candidates: Candidates | None = None


class Runner(Protocol):
    """A model on a device, with `slots` independent streams in one batch.

    Code above this interface is shared by all backends. The text token that `step` returns for the n-th audio frame
    (n = 1, 2, ...) is number n of the slot's text stream. Number 0 comes from the initial tokens before any audio, and
    is the same for every stream.
    """

    @property
    def frame_samples(self) -> int:
        """Samples in one frame (1920 for Mimi)."""
        ...

    @property
    def frame_rate(self) -> float:
        """Frames per second (12.5 for Mimi)."""
        ...

    @property
    def slots(self) -> int:
        """B, the number of streams."""
        ...

    @property
    def delay_frames(self) -> int:
        """Number of frames by which the text lags behind the audio."""
        ...

    def delay_frames_of(self, delay: float) -> int:
        """Return the number of frames by which the text of a stream with this delay lags.

        Args:
            delay: Seconds.

        Raises:
            ConfigError: The model does not have this delay.
        """
        ...

    def reset(self, slots: Sequence[int], delay: float | None = None, first_frame: int = 0, language: int = 0) -> None:
        """Start a new stream in some slots. The other slots do not change.

        Args:
            slots: Their numbers, from 0.
            delay: The text delay of the streams in seconds, for a model that is trained with several; None is the
                model's own.
            first_frame: The number of the first frame, for streams that continue longer ones: sinusoidal positions
                start there. Rotary positions are relative, so nothing else depends on it.
            language: Their language, for a model that streams can be set to one: see `LMConfig.language_number`.

        Raises:
            ConfigError: The model does not have this delay.
            ValueError: The model does not have this language.
        """
        ...

    def step(self, pcm_BS: FloatArray, active_B: BoolArray, steering: Steering | None = None) -> StepOutput:
        """Advance the active slots by one frame. The other slots do not change.

        Args:
            pcm_BS: One frame of samples per slot, `[B, frame_samples]`, float32 within [-1, 1].
            active_B: Which slots advance.
            steering: Biases of text tokens, and a request for candidates.

        Returns:
            The text token and the pause probabilities of each slot.
        """
        ...

    def launch(
        self, pcm_BS: FloatArray, active_B: BoolArray, steering: Steering | None = None
    ) -> Callable[[], StepOutput]:
        """Begin a step, and return a function that waits for its output.

        Call that function before the next `launch` or `step`, and leave `pcm_BS` unchanged until then. In between,
        operations on the slots that are not active are allowed: they come after the step.

        Args:
            pcm_BS: As for `step`.
            active_B: As for `step`.
            steering: As for `step`.

        Returns:
            A function that returns the output of the step.
        """
        ...

    @property
    def max_ahead(self) -> int:
        """The most frames that `encode` takes; 0 for a runner that does not encode ahead."""
        ...

    def encode(self, slots: Sequence[int], pcm_FS: FloatArray) -> None:
        """Encode the next frames of some slots, which have the same audio so far, ahead of their steps.

        Their next F steps use the result and ignore `pcm_BS`. The outputs are the same, bit for bit. For a stream whose
        audio is already there, this is faster than encoding frame by frame.

        Args:
            slots: Their numbers.
            pcm_FS: The frames `[F, frame_samples]`, float32 within [-1, 1]; at most `max_ahead`.

        Raises:
            ValueError: The frames do not fit, or a slot has encoded frames left.
            AudioError: Samples are not finite.
        """
        ...

    def force(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """Replace the last text token of some slots: their next step reads another one than they wrote.

        Args:
            slots: Their numbers.
            tokens: A text token for each.

        Raises:
            ValueError: A token is not in the vocabulary.
        """
        ...

    def copy_text(self, source: int, target: int) -> None:
        """Continue the text of one slot in a second one, which has had the same audio.

        The result is that of a `snapshot` of the first and a `restore` into the second. A runner does not have to copy
        what depends on the audio alone.

        Args:
            source: The number of the slot to copy.
            target: The number of the slot to overwrite.
        """
        ...

    def snapshot(self, slot: int) -> State:
        """Copy the state of one slot. Later steps do not change the copy.

        Args:
            slot: Its number.

        Returns:
            The copy, for `restore`.
        """
        ...

    def savepoint(self, slot: int, steps: int) -> State:
        """Copy what `restore` needs to put the same slot back, once.

        Args:
            slot: Its number.
            steps: The most steps after which it is put back.

        Returns:
            The copy, for `restore` of the same slot.
        """
        ...

    def restore(self, slot: int, state: State) -> None:
        """Put a copy of a state into a slot.

        Args:
            slot: Its number.
            state: The result of a `snapshot` of any slot, or of a `savepoint` of this slot.
        """
        ...


class StepwiseRunner:
    """The defaults of a runner without anything to gain from `launch`, `savepoint`, `copy_text` and `encode`."""

    step: Callable[..., StepOutput]
    snapshot: Callable[[int], State]
    restore: Callable[[int, State], None]
    max_ahead: int = 0

    def encode(self, slots: Sequence[int], pcm_FS: FloatArray) -> None:
        """Raise `ValueError`: nothing is encoded ahead."""
        raise ValueError(f"{type(self).__name__} does not encode ahead of its steps")

    def launch(
        self, pcm_BS: FloatArray, active_B: BoolArray, steering: Steering | None = None
    ) -> Callable[[], StepOutput]:
        """Leave all of the step to the function that is returned."""
        if steering is None:
            return partial(self.step, pcm_BS, active_B)
        return partial(self.step, pcm_BS, active_B, steering)

    def copy_text(self, source: int, target: int) -> None:
        """Copy the whole state."""
        self.restore(target, self.snapshot(source))

    def savepoint(self, slot: int, steps: int) -> State:
        """Copy the whole state."""
        return self.snapshot(slot)

    def delay_frames_of(self, delay: float) -> int:
        """Refuse every delay but the model's own."""
        raise ConfigError(f"delay={delay:g}: this model has one delay")


_Fresh = TypeVar("_Fresh")
StreamKind = tuple[float | None, int]
"""The delay and the language of a stream, as `Runner.reset` takes them."""


def fresh_state(kept: dict[StreamKind, _Fresh], kind: StreamKind, make: Callable[[], _Fresh]) -> _Fresh:
    """Return the fresh state of a stream of this kind, from the `MAX_DELAYS` newest ones or made and kept there."""
    if kind not in kept:
        if len(kept) >= MAX_DELAYS:
            del kept[next(iter(kept))]
        kept[kind] = make()
    return kept[kind]


class BaseRunner(StepwiseRunner):
    """The attributes and checks that all backends' runners share.

    `step` of a runner checks its input with `check_step`. The engine does not check frames again. `Session.push` checks
    audio when it arrives, so that bad samples fail their own session and not the step of all sessions.
    """

    def __init__(self, config: STTConfig, slots: int, sampling: SamplingConfig | None) -> None:
        if slots < 1:
            raise ValueError(f"slots={slots}: expected at least 1")
        self.config = config
        self.slots = slots
        self.frame_samples = config.codec.frame_samples
        self.frame_rate = config.codec.frame_rate
        self.delay_frames = config.delay_frames
        self.sampling = sampling if sampling is not None else config.sampling

    def delay_frames_of(self, delay: float) -> int:
        """Return the frames by which the text of a stream with this delay lags. Raises `ConfigError`."""
        return self.config.with_delay(delay).delay_frames

    def with_delay(self, delay: float | None) -> STTConfig:
        """Return the configuration of streams with this delay; None is the model's own. Raises `ConfigError`."""
        return self.config if delay is None else self.config.with_delay(delay)

    def check_slots(self, slots: Sequence[int]) -> None:
        """Raise `ValueError` for a slot that the runner does not have."""
        for slot in slots:
            if not 0 <= slot < self.slots:
                raise ValueError(f"slot {slot}: this runner has slots 0 to {self.slots - 1}")

    def check_language(self, language: int) -> None:
        """Raise `ValueError` for the number of a language that a stream cannot be set to."""
        if not 0 <= language <= len(self.config.lm.languages):
            raise ValueError(f"language {language}: this model has {len(self.config.lm.languages)} to set")

    def check_force(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """Raise `ValueError` for slots and tokens that `force` cannot use."""
        self.check_slots(slots)
        if len(slots) != len(tokens):
            raise ValueError(f"{len(slots)} slots and {len(tokens)} tokens: expected a token for each slot")
        for token in tokens:
            if not 0 <= token < self.config.lm.text_vocab:
                raise ValueError(f"token {token}: this model has text tokens 0 to {self.config.lm.text_vocab - 1}")

    def check_steering(self, steering: Steering) -> None:
        """Raise `ValueError` for steering that does not fit this runner."""
        shape = steering.id_BN.shape
        if len(shape) != 2 or shape[0] != self.slots or shape[1] > MAX_BIASED or steering.bias_BN.shape != shape:
            raise ValueError(
                f"expected ids and biases [{self.slots}, N] with N up to {MAX_BIASED}, "
                f"got {list(shape)} and {list(steering.bias_BN.shape)}"
            )
        if steering.id_BN.size and not 0 <= steering.id_BN.min() <= steering.id_BN.max() < self.config.lm.text_vocab:
            raise ValueError(f"biased tokens must be text tokens, 0 to {self.config.lm.text_vocab - 1}")

    def check_encode(self, slots: Sequence[int], pcm_FS: FloatArray) -> None:
        """Raise `ValueError` or `AudioError` for what `encode` cannot take."""
        self.check_slots(slots)
        if pcm_FS.ndim != 2 or pcm_FS.shape[1] != self.frame_samples or not 1 <= len(pcm_FS) <= self.max_ahead:
            raise ValueError(
                f"expected 1 to {self.max_ahead} frames of {self.frame_samples} samples, got {list(pcm_FS.shape)}"
            )
        if not np.isfinite(pcm_FS).all():
            raise AudioError(f"samples of slots {list(slots)} are not finite numbers")

    def check_step(self, pcm_BS: FloatArray, active_B: BoolArray) -> FloatArray:
        """Check the input of a step, and return its samples with silence for inactive slots.

        Raises:
            ValueError: The shapes are not `[slots, frame_samples]` and `[slots]`.
            AudioError: Samples of an active slot are not finite. They would stay in the slot's state.
        """
        self.check_shapes(pcm_BS, active_B)
        return self.check_samples(pcm_BS, active_B, np.arange(self.slots))

    def check_shapes(self, pcm_BS: FloatArray, active_B: BoolArray) -> None:
        """The first part of `check_step`, for a runner that steps only some slots."""
        if pcm_BS.shape != (self.slots, self.frame_samples) or active_B.shape != (self.slots,):
            raise ValueError(
                f"expected samples [{self.slots}, {self.frame_samples}] and active [{self.slots}], "
                f"got {list(pcm_BS.shape)} and {list(active_B.shape)}"
            )

    def check_samples(self, pcm_BS: FloatArray, active_B: BoolArray, slot_R: IntArray) -> FloatArray:
        """The second part of `check_step`, for the slots `slot_R`: their samples `[R, frame_samples]`.

        Rows of inactive slots may hold anything. Silence keeps what these slots write into their rings finite.
        """
        pcm_RS = np.where(active_B[slot_R, None], pcm_BS[slot_R], np.float32(0))
        bad_R = ~np.isfinite(pcm_RS).all(axis=1)
        if bad_R.any():
            raise AudioError(f"samples of slot {slot_R[bad_R].tolist()} are not finite numbers")
        return pcm_RS
