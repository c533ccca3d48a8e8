"""Helpers that benchmarks share: timing, tables, memory, and a runner that costs nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slipstream.arrays import BoolArray, FloatArray
from slipstream.checkpoints.kyutai import dump_kyutai
from slipstream.model.config import PAD_ID, WORD_ID, STTConfig
from slipstream.model.runner import State, StepOutput, StepwiseRunner
from slipstream.testing import FRAME_RATE, FRAME_SAMPLES, LEXICON, tiny_tokenizer

Row = dict[str, Any]
Step = Callable[[], object]


def numbers(text: str) -> list[int]:
    """Parse `1,8,64`."""
    return [int(number) for number in text.split(",")]


# ------------------------------------------------------------------------------------------------------------- timing


def milliseconds(step: Step, steps: int) -> Row:
    """Time `steps` steps after a warm-up. `step` returns when the device has finished."""
    times = []
    for _ in range(5 + steps):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return summary(times[5:])


def summary(seconds: Sequence[float]) -> Row:
    return {
        "median_ms": 1e3 * float(np.median(seconds)),
        "p99_ms": 1e3 * float(np.percentile(seconds, 99)),
        "worst_ms": 1e3 * max(seconds),
    }


def race(ours: Step, theirs: Step, steps: int, synchronise: Step = lambda: None) -> tuple[list[float], list[float]]:
    """Seconds of each step of both, alternating every five steps, so that other load affects both.

    The first five steps of each are a warm-up.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(-1, -(-steps // 5)):
        for step, recorded in zip((ours, theirs), times, strict=True):
            for _ in range(5):
                start = time.perf_counter()
                step()
                synchronise()
                if turn >= 0:
                    recorded.append(time.perf_counter() - start)
    return times


# ------------------------------------------------------------------------------------------------------------- tables


def table(rows: Sequence[Row]) -> str:
    """A Markdown table with a column for every key."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([shown(row.get(column)) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --------------------------------------------------------------------------------------------------- models, processes


def resident_bytes(pid: int | str | None = "self") -> int:
    """Resident memory of a process (Linux)."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return 1024 * int(line.split()[1])


def moshi_lm_arguments(config: STTConfig) -> Row:
    """The keyword arguments of an LM in the `moshi` package: `config.json` without its file names."""
    about_files = ("stt_config", "lm_gen_config", "model_type", "model_id", "moshi_name", "mimi_name", "tokenizer_name")
    return {key: value for key, value in dump_kyutai(config).items() if key not in (*about_files, "conditioners")}


class FreeRunner(StepwiseRunner):
    """A Runner that costs almost nothing. It repeats a few words, with pauses between them."""

    frame_samples = FRAME_SAMPLES
    frame_rate = FRAME_RATE
    delay_frames = 6

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._frames_B = np.zeros(slots, np.int64)
        words = [[PAD_ID, PAD_ID, PAD_ID, WORD_ID, *tiny_tokenizer().encode(word)] for word in LEXICON]
        self._text = np.concatenate(words)
        self._logprob_B = np.full(slots, -0.1, np.float32)
        self._pause_BH = np.full((slots, 4), 0.25, np.float32)

    def reset(self, slots: Sequence[int], first_frame: int = 0) -> None:
        self._frames_B[list(slots)] = first_frame

    def step(self, pcm_BS: FloatArray, active_B: BoolArray) -> StepOutput:
        self._frames_B += active_B
        return StepOutput(self._text[self._frames_B % len(self._text)], self._logprob_B, self._pause_BH)

    def snapshot(self, slot: int) -> State:
        return int(self._frames_B[slot])

    def restore(self, slot: int, state: State) -> None:
        self._frames_B[slot] = state
