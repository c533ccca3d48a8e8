"""The laws of a runner on the device that it runs on: what must not change the output of a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from benchmarks.common import Row
from benchmarks.gpu.bench import Bench, noise

from slipstream.arrays import FloatArray
from slipstream.backends.torch.runner import TorchRunner
from slipstream.nn.ring import RingFormat

SLOTS = 8
SLOT, OTHER = 5, 2
OTHERS = (0, 1, 7)

ROUNDS_OTHERWISE = ("moved to another slot by a snapshot", "in a batch of one")
"""Cases in which the stream is in another row, or in a batch of another size."""

Between = Callable[[TorchRunner, int], int]
"""What happens before a frame, by its number; returns the slot that the stream is in from then on."""


def invariants(bench: Bench, rings: RingFormat) -> Iterator[Row]:
    """Yield the largest difference of a stream's log-probabilities from those of the same stream left alone.

    It must be 0, and about 1e-6 for the cases of `ROUNDS_OTHERWISE`.
    """
    frames = bench.options.frames
    one, other = (TorchRunner(bench.config, bench.codec, bench.lm_f32, slots=SLOTS, buckets=sizes, rings=rings)
                  for sizes in ((SLOTS,), (1, SLOTS)))  # fmt: skip
    audio_TS = noise(frames, bench.config, seed=1)
    token_T, logprob_T = outputs(one, audio_TS, lambda runner, t: SLOT)
    cases: dict[str, tuple[TorchRunner, Between]] = {
        "again, after a reset": (one, lambda runner, t: SLOT),
        "other streams next to it": (one, neighbours),
        "paused while others run": (one, pauses),
        "moved to another slot by a snapshot": (one, moves),
        "silence, then back to a savepoint": (one, savepoints),
        "in a batch of one": (other, lambda runner, t: SLOT),
    }
    for name, (runner, between) in cases.items():
        tokens, logprobs = outputs(runner, audio_TS, between)
        yield {
            "invariant": name,
            "keys": "int8" if rings.int8 else "float32",
            "share": float(np.mean(tokens == token_T)),
            "largest difference": float(np.abs(logprobs - logprob_T).max()),
        }


def outputs(runner: TorchRunner, audio_TS: FloatArray, between: Between) -> tuple[FloatArray, FloatArray]:
    """The tokens `[T]` and their log-probabilities of one stream."""
    runner.reset(range(SLOTS))
    tokens, logprobs = [], []
    for t, frame_S in enumerate(audio_TS):
        slot = between(runner, t)
        output = advance(runner, frame_S, [slot], OTHERS if between is neighbours else ())
        tokens.append(output[0][slot])
        logprobs.append(output[1][slot])
    return np.array(tokens), np.array(logprobs)


def advance(
    runner: TorchRunner, frame_S: FloatArray, slots: Sequence[int], louder: Sequence[int] = ()
) -> tuple[FloatArray, FloatArray]:
    """Step some slots with the same frame, and others with a louder one."""
    pcm_BS = np.zeros((SLOTS, runner.frame_samples), np.float32)
    pcm_BS[list(slots)] = frame_S
    pcm_BS[list(louder)] = 3 * frame_S
    output = runner.step(pcm_BS, np.isin(np.arange(SLOTS), [*slots, *louder]))
    return output.token_B, output.logprob_B


def neighbours(runner: TorchRunner, t: int) -> int:
    """Other streams run in the same steps."""
    return SLOT


def pauses(runner: TorchRunner, t: int) -> int:
    if t % 3 == 1:
        for loud in (0.3, 0.1):
            advance(runner, np.full(runner.frame_samples, loud, np.float32), OTHERS)
    return SLOT


def moves(runner: TorchRunner, t: int) -> int:
    slots = SLOT, OTHER
    if t % 2 == 0 and t > 0:
        runner.restore(slots[t // 2 % 2], runner.snapshot(slots[(t // 2 + 1) % 2]))
    return slots[t // 2 % 2]


def savepoints(runner: TorchRunner, t: int) -> int:
    if t % 4 == 2:
        saved = runner.savepoint(SLOT, 3)
        for _ in range(3):
            advance(runner, np.zeros(runner.frame_samples, np.float32), [SLOT])
        runner.restore(SLOT, saved)
    return SLOT
