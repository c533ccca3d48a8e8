"""The training loop: rows to gradients to steps, over any number of processes, resumable at any step.

A step depends on the weights, the optimiser's state, the step's number and the seed, and on nothing else: all draws
come from the rows. So a killed run resumes without a difference, and processes only share the rows.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slipstream.data.sampler import prefetch
from slipstream.errors import CheckpointError
from slipstream.train.optim import Optimizer, trapezoid
from slipstream.train.options import RunOptions
from slipstream.train.parallel import Task, dtype_of, hold
from slipstream.train.sharding import part_of, whole

CHECKPOINT_FILE = "last.pt"


@dataclass(frozen=True, slots=True)
class Check:
    """A measurement every `every` steps; it gives numbers for the log."""

    every: int
    measure: Callable[[], dict[str, float]]


def train(task: Task, options: RunOptions, report: Callable[[str], None] = print) -> Path:
    """Run to the end of `options.steps` or `options.minutes`, from the last checkpoint in `options.out` if any.

    Gives the path of the last checkpoint. The first interrupt (SIGINT, SIGTERM) ends the run after its step, with a
    checkpoint, and raises `KeyboardInterrupt` then. Raises `CheckpointError` when there is a checkpoint of another
    model.
    """
    return Trainer(task, options, report).run()


class Trainer:
    """One process of a run; see `train`."""

    def __init__(
        self,
        task: Task,
        options: RunOptions,
        report: Callable[[str], None] = print,
        check: Check | None = None,
    ) -> None:
        self.task, self.options, self.report, self.check = task, options, report, check
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        parts = self.world * options.accumulate
        if options.rows % parts:
            raise CheckpointError(f"run.rows={options.rows} must be a multiple of processes x accumulate = {parts}")
        self.share = options.rows // parts
        self.weights = hold(task, options, dtype_of(options))
        self.optimizer = Optimizer(
            self.weights.masters, options.optimizer, options.weight_decay, options.betas, options.encoder_rate
        )
        self.average = {n: w.detach().clone() for n, w in self.weights.masters.items()} if options.average else None
        self.step = 0
        self.elapsed = 0.0
        self.path = Path(options.out) / CHECKPOINT_FILE
        if self.path.exists():
            # Mapped, so that a process reads no more than its part of a large model.
            self._restore(torch.load(self.path, weights_only=True, mmap=True))

    def run(self) -> Path:
        if self._progress(self.elapsed) >= 1.0:
            self.report(
                f"{self.path}: this run has had its {self.step} steps; to train on, give it more, or another out"
            )
        with _Log(self.options.out, self.rank) as log, _interrupts() as interrupts:
            finished = self._train(log, interrupts)
        self.save()
        if not finished:
            self.report(f"stopped: {self.path} is of step {self.step}; the same command resumes from there")
            raise KeyboardInterrupt
        self._put(self.average or {})
        self.weights.assemble()
        return self.path

    def _train(self, log: _Log, interrupts: list[int]) -> bool:
        """Train to the end of the run, or to the step in which an interrupt comes; report which."""
        options, start = self.options, time.monotonic() - self.elapsed
        sums: dict[str, float] = defaultdict(float)
        since, since_step = time.monotonic(), self.step
        with closing(prefetch(self._draw, self.step * options.accumulate, 1)) as batches:
            while (progress := self._progress(time.monotonic() - start)) < 1.0:
                if self._from_first(len(interrupts)):
                    return False
                for name, value in self._train_step(batches, progress).items():
                    sums[name] += value
                self.elapsed = time.monotonic() - start
                if self.step % options.log_every == 0:
                    now, steps = time.monotonic(), self.step - since_step
                    numbers = {name: value / steps for name, value in sums.items()}
                    numbers["realtime"] = steps * options.rows * self.task.row_seconds / (now - since)
                    numbers["minutes_left"] = self._minutes_left()
                    log.write(self.step, self.elapsed, numbers, self.report)
                    sums.clear()
                    since, since_step = now, self.step
                if self.step % options.checkpoint_every == 0:
                    self.save()
                if self.check is not None and self.step % self.check.every == 0:
                    self._measure(self.check, log)
        return True

    def _measure(self, check: Check, log: _Log) -> None:
        """Measure the average if there is one, else the weights as they are; the other processes wait."""
        kept = {name: master.detach().clone() for name, master in self.weights.masters.items()} if self.average else {}
        self._put(self.average or {})
        if self.rank == 0:
            log.write(self.step, self.elapsed, check.measure(), self.report)
        if self.world > 1:
            dist.barrier()
        self._put(kept)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights into the masters and the module."""
        for name, tensor in weights.items():
            self.weights.masters[name].copy_(tensor)
        if weights:
            self.weights.publish()
            self.task.after_step()

    def _progress(self, elapsed: float) -> float:
        if self.options.steps is not None:
            return self.step / self.options.steps
        assert self.options.minutes is not None
        return self._from_first(elapsed / 60 / self.options.minutes)

    def _minutes_left(self) -> float:
        if self.options.steps is not None:
            return self.elapsed / 60 * (self.options.steps / self.step - 1)
        assert self.options.minutes is not None
        return max(0.0, self.options.minutes - self.elapsed / 60)

    def _from_first(self, number: float) -> float:
        """The first process's `number`: one clock for all, or they would stop at different steps."""
        if self.world == 1:
            return number
        shared = torch.tensor(number, device=self.options.device)
        dist.broadcast(shared, 0)
        return float(shared)

    def _draw(self, number: int) -> Any:
        """This process's `number`-th batch since the start of the run: its share of the step's rows."""
        step, part = divmod(number, self.options.accumulate)
        first = step * self.options.rows + (self.rank * self.options.accumulate + part) * self.share
        return self.task.batch(first, self.share)

    def _train_step(self, batches: Iterator[Any], progress: float) -> dict[str, float]:
        options = self.options
        numbers: dict[str, float] = defaultdict(float)
        torch.manual_seed(options.seed + self.step)  # for draws of the loss; rows have their own
        for _ in range(options.accumulate):
            loss, parts = self.weights.loss(next(batches), self.step, progress)
            (loss / options.accumulate).backward()
            for name, value in {"loss": loss.item(), **parts}.items():
                numbers[name] += value / options.accumulate
        self.weights.collect()
        rate = options.learning_rate * trapezoid(progress, options.warmup, options.decay)
        numbers["gradient"] = self.optimizer.step(rate, options.clip)
        numbers["rate"] = rate
        if not math.isfinite(numbers["loss"] + numbers["gradient"]):
            raise CheckpointError(
                f"step {self.step}: the loss is {numbers['loss']:g} and the norm of its gradient "
                f"{numbers['gradient']:g}; {self.path} is of the last good checkpoint: go on from it at a lower "
                "run.learning_rate"
            )
        self.weights.publish()
        self._move_average()
        self.task.after_step()
        self.step += 1
        return numbers

    @torch.no_grad()
    def _move_average(self) -> None:
        """Move the average towards the weights; over fewer steps at first, so that it forgets where they began."""
        if self.average is None:
            return
        keep = min(self.options.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), list(self.weights.masters.values()), 1 - keep)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all: what learns or moves, since the rest is as it was at the start.

        It holds whole tensors, so that a run can go on with another number of processes, sharded or not.
        """
        parameters = dict(self.task.module.named_parameters())
        masters = {name: whole(master.detach()) for name, master in self.weights.masters.items()}
        buffers = {n: b for n, b in self.task.module.state_dict().items() if n not in parameters}
        state = {
            "weights": masters | buffers,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
        }
        if self.average is not None:
            state["average"] = {name: whole(tensor) for name, tensor in self.average.items()}
        if self.rank:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".tmp")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def _restore(self, state: dict[str, Any]) -> None:
        masters, weights = self.weights.masters, state["weights"]
        ours = self.task.module.state_dict() | masters
        wrong = {name for name in masters if name not in weights}
        wrong |= {name for name, tensor in weights.items() if name in ours and ours[name].shape != tensor.shape}
        if wrong:
            raise CheckpointError(
                f"{self.path} is of another model: {', '.join(sorted(wrong)[:3])} are not there, or of another shape; "
                "give this run another run.out"
            )
        buffers = {name: tensor for name, tensor in weights.items() if name not in masters}
        self.task.module.load_state_dict(buffers, strict=False)
        with torch.no_grad():
            for name, master in masters.items():
                master.copy_(part_of(weights[name], master))
        self.weights.publish()
        self.task.after_step()
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed = state["step"], state["elapsed"]
        if self.average is not None:
            for name, tensor in self.average.items():
                tensor.copy_(part_of(state.get("average", weights)[name], tensor))
        self.report(f"{self.path}: going on from step {self.step}")


class _Log:
    """Lines for people, `log.jsonl` for programs, and TensorBoard where it is installed; from the first process."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._file = self._board = None
        if rank:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "log.jsonl").open("a", encoding="utf-8")
        with suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, elapsed: float, numbers: dict[str, float], report: Callable[[str], None]) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, "elapsed": round(elapsed, 1), **numbers}) + "\n")
        self._file.flush()
        report(f"{elapsed / 60:6.1f} min  step {step}  " + "  ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> _Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The signals that ask the run to end, as they come.

    A second one of a kind is not held back, and outside the main thread none is.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
