"""Measurements during a run: loss on rows, and word errors on recordings, that the run does not learn from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from slipstream.data.options import ValidOptions
from slipstream.train.transfer import Numbers

Measure = Callable[[Path], float]
"""Word error rate of the model in a folder."""


class Draws(Protocol):
    """A source of rows, such as `data.rows.Sampler`."""

    def batch(self, first_row: int, rows: int) -> Any: ...


class Learns(Protocol):
    """A task, as far as validation needs it."""

    def loss(self, batch: Any, step: int, progress: float) -> tuple[Tensor, Numbers]: ...


@dataclass(frozen=True, slots=True)
class Check:
    """A measurement every `every` steps: `measure(step)` returns numbers for the log.

    `exhausted` reports whether the last `patience` measurements brought no better model; the run ends then.
    """

    every: int
    measure: Callable[[int], dict[str, float]]
    exhausted: Callable[[], bool] = lambda: False


def held_out_loss(task: Learns, rows: Draws, count: int, at_once: int, step: int) -> dict[str, float]:
    """The mean loss, and its parts, of the first `count` rows of `rows`. Changes nothing: no gradient, no codebooks."""
    sums: dict[str, Tensor] = {}
    with torch.no_grad():
        for first in range(0, count, at_once):
            number = min(at_once, count - first)
            torch.manual_seed(first)
            loss, parts = task.loss(rows.batch(first, number), step, 1.0)
            for name, value in {"loss": loss, **parts}.items():
                sums[name] = sums.get(name, 0.0) + value * (number / count)
    return {f"valid_{name}": value.item() for name, value in sums.items()}


class Validation:
    """What `[data.valid]` asks for: measures, keeps the best model in `best`, and counts measurements without progress.

    The measurements are in `valid.json` of the run's folder, so that a resumed run knows the best.

    Args:
        out: the run's folder.
        loss: measures the held-out loss as of a step's number, if the run has rows for it.
        measure: measures the word errors of an exported model, if the run has recordings for it.
        export: writes the model as it is into a folder.
    """

    def __init__(
        self,
        options: ValidOptions,
        out: Path,
        loss: Callable[[int], dict[str, float]] | None,
        measure: Measure | None,
        export: Callable[[Path], None] | None,
    ) -> None:
        self.options, self.out = options, out
        self._loss, self._measure, self._export = loss, measure, export

    def __call__(self, step: int) -> dict[str, float]:
        """Measure the model as it is after `step` steps."""
        numbers = self._loss(step - 1) if self._loss else {}
        candidate = self.out / "candidate"
        if self._export is not None:
            self._export(candidate)
            if self._measure is not None:
                numbers["wer"] = self._measure(candidate)
        score = numbers["wer"] if "wer" in numbers else numbers["valid_loss"]
        # A step that is measured again, after a resume, replaces its earlier score.
        history = {at: value for at, value in self._history().items() if at < step}
        if self._export is not None and score < min(history.values(), default=float("inf")):
            shutil.rmtree(self.out / "best", ignore_errors=True)
            candidate.rename(self.out / "best")
        self._record.write_text(json.dumps(history | {step: score}), encoding="utf-8")
        return numbers

    def exhausted(self) -> bool:
        """Report whether the last `patience` measurements were no better than the best before them."""
        patience, scores = self.options.patience, list(self._history().values())
        return patience is not None and len(scores) > patience and min(scores[-patience:]) >= min(scores[:-patience])

    @property
    def _record(self) -> Path:
        return self.out / "valid.json"

    def _history(self) -> Mapping[int, float]:
        if not self._record.is_file():
            return {}
        return {int(step): score for step, score in json.loads(self._record.read_text(encoding="utf-8")).items()}
