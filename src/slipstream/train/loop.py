"""The training loop: rows to gradients to steps, over any number of processes, resumable at any step.

A step depends on the weights, the optimiser's state, the step's number and the seed, and on nothing else: all draws
come from the rows. So a killed run resumes without a difference, and processes only share the rows.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slipstream.data.prefetch import prefetch
from slipstream.errors import CheckpointError
from slipstream.train.optim import Optimizer, freeze, trapezoid
from slipstream.train.options import RunOptions
from slipstream.train.parallel import FreezesEncoder, Prepares, Task, dtype_of, from_first, hold, shards
from slipstream.train.phases import Phases
from slipstream.train.precision import agreed, settled
from slipstream.train.saved import CHECKPOINT_FILE, read_saved
from slipstream.train.sharding import part_of, whole
from slipstream.train.trackers import Log
from slipstream.train.transfer import Numbers, Receipt
from slipstream.train.validation import Check

PREFETCHED = 2
"""Steps whose rows are drawn ahead of use."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A step that was taken, whose numbers the device may still compute.

    `batches`: the name of each batch's loss in the numbers, and its rows, from the first to the one after the last.
    """

    step: int
    rate: float
    numbers: Receipt
    batches: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Drawn:
    """The batches of a step and their numbers of rows, from row `first` on."""

    first: int
    rows: list[int]
    batches: list[Any]


def train(task: Task, options: RunOptions, report: Callable[[str], None] = print) -> Path:
    """Run to the end of `options.steps` or `options.minutes`, from the last checkpoint in `options.out` if any.

    Returns the path of the last checkpoint. The first interrupt (SIGINT, SIGTERM) ends the run after its step, with a
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
        phases: Phases | None = None,
    ) -> None:
        self.options = options = settled(options, report)
        self.task, self.report, self.check, self.phases = task, report, check, phases
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        parts = self.world * options.accumulate
        if options.rows % parts:
            raise CheckpointError(f"run.rows={options.rows} must be a multiple of processes x accumulate = {parts}")
        self.share = options.rows // parts
        self.at_once = self.share
        """Rows of a batch: the share, or less after a device ran out of memory."""
        self.path = Path(options.out) / CHECKPOINT_FILE
        if isinstance(task, Prepares):  # also to resume: a checkpoint lacks weights that keep what they start with
            if shards(options) == 1:
                task.module.to(options.device)
            task.prepare()
        freeze(task.module, options.rates)
        self.weights = hold(task, options, dtype_of(options))
        self.optimizer = Optimizer(
            self.weights.masters,
            options.optimizer,
            options.weight_decay,
            options.betas,
            options.encoder_rate != 1 or phases is not None,
            options.rates,
            agreed(options.device) if options.optimizer == "muon" else torch.float32,
        )
        self.average = {n: w.detach().clone() for n, w in self.weights.masters.items()} if options.average else None
        self.fixed: set[str] = set()
        """Weights that learned before this run was resumed, and do not any more."""
        self.step = 0
        self.elapsed = 0.0
        self.sums: dict[str, float] = defaultdict(float)
        """Numbers since the last line of the log, over `summed` steps."""
        self.summed = 0
        self.unread: Taken | None = None
        """The last step. Its numbers are read after the next one was begun, so that a GPU always has work."""
        if self.path.exists():
            self._restore(read_saved(self.path))

    def run(self) -> Path:
        if self.check is not None and from_first(self.rank == 0 and self.check.exhausted(), self.options.device):
            self.report(f"{self.path}: this run has ended: data.valid.patience measurements brought no better model")
            self._put(self.average or {})
            self.weights.assemble()
            return self.path
        if self._progress(self.elapsed) >= 1.0:
            self.report(
                f"{self.path}: this run has finished its {self.step} steps; to continue, raise run.steps or "
                "run.minutes, or set another run.out"
            )
        settings = self.options.model_dump(mode="json")
        log = Log(self.options.out, self.options.trackers, settings, silent=self.rank > 0)
        with log, _interrupts() as interrupts:
            finished = self._train(log, interrupts)
        self.save()
        if not finished:
            self.report(f"stopped: {self.path} is of step {self.step}; the same command resumes from there")
            raise KeyboardInterrupt
        self._put(self.average or {})
        self.weights.assemble()
        return self.path

    def _train(self, log: Log, interrupts: list[int]) -> bool:
        """Train to the end of the run, or to the step in which an interrupt comes; report which."""
        options, start = self.options, time.monotonic() - self.elapsed
        since, since_step = time.monotonic(), self.step
        orders = ((step, self.at_once, self.elapsed) for step in count(self.step))
        with closing(prefetch(self._draw, orders, PREFETCHED, options.workers)) as steps:
            while (progress := self._progress(time.monotonic() - start)) < 1.0:
                if from_first(len(interrupts), self.options.device):
                    return False
                taken = self._train_step(next(steps), progress)
                self._read()
                self.unread = taken
                self.elapsed = time.monotonic() - start
                if self.step % options.log_every == 0:
                    self._read()
                    now = time.monotonic()
                    numbers = {name: value / self.summed for name, value in self.sums.items()}
                    numbers["realtime"] = (
                        (self.step - since_step) * options.rows * self.task.row_seconds / (now - since)
                    )
                    numbers["minutes_left"] = self._minutes_left()
                    log.write(self.step, self.elapsed, numbers, self.report)
                    self.sums.clear()
                    self.summed, since, since_step = 0, now, self.step
                if self.step % options.checkpoint_every == 0:
                    self.save()
                if self.check is not None and self.step % self.check.every == 0 and self._measure(self.check, log):
                    break
        return True

    def _measure(self, check: Check, log: Log) -> bool:
        """Measure the average if there is one, else the weights as they are; report whether the run is to end."""
        self._read()
        kept = {name: master.detach().clone() for name, master in self.weights.masters.items()} if self.average else {}
        self._put(self.average or {})
        ended = False
        if self.rank == 0:
            log.write(self.step, self.elapsed, check.measure(self.step), self.report)
            if ended := check.exhausted():
                self.report(f"step {self.step}: the last measurements brought no better model, so the run ends here")
        ended = bool(from_first(ended, self.options.device))
        self._put(kept)
        return ended

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
        return from_first(elapsed / 60 / self.options.minutes, self.options.device)

    def _minutes_left(self) -> float:
        if self.options.steps is not None:
            return self.elapsed / 60 * (self.options.steps / self.step - 1)
        assert self.options.minutes is not None
        return max(0.0, self.options.minutes - self.elapsed / 60)

    def _draw(self, order: tuple[int, int, float]) -> Drawn:
        """This process's share of the rows of a step, in batches of at most `at_once`, after `elapsed` seconds."""
        step, at_once, elapsed = order
        share = self.share * self.options.accumulate
        first = step * self.options.rows + self.rank * share
        starts = [part + start for part in range(0, share, self.share) for start in range(0, self.share, at_once)]
        rows = [min(at_once, self.share - start % self.share) for start in starts]
        draw: Callable[[int, int], Any] = self.task.batch
        if self.phases is not None:
            # The phase follows from the step, as the row does; in a run by the clock, from the time of drawing.
            steps, minutes = self.options.steps, self.options.minutes
            draw = self.phases.at(step / steps if steps else elapsed / 60 / (minutes or 1)).draw
        return Drawn(first, rows, [draw(first + at, n) for at, n in zip(starts, rows, strict=True)])

    def _train_step(self, drawn: Drawn, progress: float) -> Taken:
        options = self.options
        rate, encoder_rate = (
            options.learning_rate * trapezoid(progress, options.warmup, options.decay),
            options.encoder_rate,
        )
        if self.phases is not None:
            phase = self.phases.at(progress)
            rate *= phase.rate(progress)
            if phase.options.encoder_rate is not None:
                encoder_rate = phase.options.encoder_rate
            if isinstance(self.task, FreezesEncoder):
                self.task.encoder_learns = encoder_rate > 0
        numbers, batches = self._gradients(drawn, progress)
        self.weights.collect()
        numbers["gradient"] = self.optimizer.step(rate, options.clip, encoder_rate)
        taken = Taken(self.step, rate, Receipt(numbers), batches)
        self.weights.publish()
        self._move_average()
        self.task.after_step()
        self.step += 1
        return taken

    def _read(self) -> None:
        """Add the numbers of the last step to the sums. Raises `CheckpointError` if they are not finite."""
        taken, self.unread = self.unread, None
        if taken is None:
            return
        numbers = taken.numbers.read()
        losses = {name: numbers.pop(name) for name in taken.batches}
        if not math.isfinite(numbers["loss"] + numbers["gradient"]):
            bad = [row for name, loss in losses.items() if not math.isfinite(loss) for row in taken.batches[name]]
            where = f"rows {bad[0]} to {bad[-1] - 1}" if bad else "the rows of another process, or the backward pass"
            raise CheckpointError(
                f"step {taken.step}, {where}: the loss is {numbers['loss']:g} and the norm of its gradient "
                f"{numbers['gradient']:g}. {self.path} is of the last good checkpoint: resume from it with a lower "
                "run.learning_rate, or look at these rows: `--check --row N` of `train codec` and `train lm` writes "
                "them as audio"
            )
        for name, value in (numbers | {"rate": taken.rate}).items():
            self.sums[name] += value
        self.summed += 1

    def _gradients(self, drawn: Drawn, progress: float) -> tuple[Numbers, dict[str, tuple[int, int]]]:
        """Sum the gradients of the step's batches; return its numbers, and the rows of each batch.

        A device that runs out of memory gets batches of half as many rows from then on.
        """
        moving = [buffer.clone() for buffer in self.task.moving()]
        while True:
            if max(drawn.rows) > self.at_once:
                drawn = self._draw((self.step, self.at_once, self.elapsed))
            try:
                return self._accumulate(drawn, progress)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                if self.at_once == 1 or shards(self.options) > 1:
                    raise CheckpointError(
                        f"step {self.step}: out of memory with {self.at_once} rows in a batch: use a shorter "
                        "data.seconds, run.checkpoint_layers = true, or a smaller model"
                    ) from error
            # Outside the handler, whose traceback holds the activations.
            self.at_once = -(-self.at_once // 2)
            self.task.module.zero_grad(set_to_none=True)
            for buffer, before in zip(self.task.moving(), moving, strict=True):
                buffer.copy_(before)
            self.task.after_step()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.report(f"step {self.step}: out of memory; batches have {self.at_once} rows from now on")

    def _accumulate(self, drawn: Drawn, progress: float) -> tuple[Numbers, dict[str, tuple[int, int]]]:
        numbers: Numbers = {}
        batches: dict[str, tuple[int, int]] = {}
        first, all_rows = drawn.first, sum(drawn.rows)
        torch.manual_seed(self.options.seed + self.step)  # for draws of the loss; rows have their own
        for batch, rows in zip(drawn.batches, drawn.rows, strict=True):
            loss, parts = self.weights.loss(batch, self.step, progress)
            (loss * (rows / all_rows)).backward()
            batch_loss = loss.detach()
            for name, part in {"loss": batch_loss, **parts}.items():
                numbers[name] = numbers.get(name, 0.0) + part * (rows / all_rows)
            numbers[f"batch {first}"] = batch_loss
            batches[f"batch {first}"] = first, first + rows
            first += rows
        return numbers, batches

    @torch.no_grad()
    def _move_average(self) -> None:
        """Move the average towards the weights; over fewer steps at first, so that it forgets where they began."""
        if self.average is None:
            return
        keep = min(self.options.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), list(self.weights.masters.values()), 1 - keep)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all: what learns, has learned or moves.

        The rest, whose names are in `kept`, is as at the start. It learns from there if a resumed run lets it. The file
        holds whole tensors, so that a run can continue with another number of processes, sharded or not.
        """
        self._read()
        parameters = dict(self.task.module.named_parameters())
        learned = self.weights.masters | {name: parameters[name] for name in self.fixed}
        masters = {name: whole(weight.detach()) for name, weight in learned.items()}
        buffers = {n: b for n, b in self.task.module.state_dict().items() if n not in parameters}
        state = {
            "weights": masters | buffers,
            "kept": sorted(parameters.keys() - masters.keys()),
            "optimizer": self.optimizer.state_dict(),
            "dtype": self.options.dtype,
            "step": self.step,
            "elapsed": self.elapsed,
            "at_once": self.at_once,
            "sums": dict(self.sums),
            "summed": self.summed,
        }
        if self.average is not None:
            state["average"] = {name: whole(tensor) for name, tensor in self.average.items()}
        if self.rank:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".tmp")
        torch.save(state, partial)
        os.replace(partial, self.path)
        self._keep()

    def _keep(self) -> None:
        """Keep this checkpoint next to later ones, at most `options.keep`."""
        if not self.options.keep:
            return
        kept = self.path.with_name(f"step-{self.step:08d}.pt")
        kept.unlink(missing_ok=True)
        try:
            os.link(self.path, kept)
        except OSError:  # a file system without links
            shutil.copyfile(self.path, kept)
        for old in sorted(self.path.parent.glob("step-*.pt"))[: -self.options.keep]:
            old.unlink()

    def _restore(self, state: dict[str, Any]) -> None:
        masters, weights = self.weights.masters, state["weights"]
        ours = self.task.module.state_dict() | masters
        wrong = masters.keys() - weights.keys() - set(state.get("kept", ()))
        wrong |= {name for name, tensor in weights.items() if name in ours and ours[name].shape != tensor.shape}
        if wrong:
            raise CheckpointError(
                f"{self.path} is of another model: {', '.join(sorted(wrong)[:3])} are not there, or of another shape; "
                "give this run another run.out"
            )
        buffers = {name: tensor for name, tensor in weights.items() if name not in masters}
        self.task.module.load_state_dict(buffers, strict=False)
        self.fixed = buffers.keys() & dict(self.task.module.named_parameters()).keys()
        with torch.no_grad():
            for name in masters.keys() & weights.keys():
                masters[name].copy_(part_of(weights[name], masters[name]))
        self.weights.publish()
        self.task.after_step()
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.at_once = min(self.share, state.get("at_once", self.share))
        self.sums.update(state.get("sums", {}))
        self.summed = state.get("summed", 0)
        if self.average is not None:
            averages = state.get("average", weights)
            for name in self.average.keys() & averages.keys():
                self.average[name].copy_(part_of(averages[name], self.average[name]))
        before = state.get("dtype", self.options.dtype)
        change = f", in {self.options.dtype} instead of {before}" if before != self.options.dtype else ""
        self.report(f"{self.path}: going on from step {self.step}{change}")


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error)  # PyTorch's allocator for CPUs


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
