"""The weights of a run over its processes: all of them in each, or sharded, so that each has a part of everything.

Sharded (FSDP2: `fully_shard`), a process keeps its part of every weight, gradient and moment of the optimiser. A
Transformer layer is put together for as long as it computes, the rest of the model for the length of a step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slipstream.nn.layers import TransformerLayer
from slipstream.train.optim import MasterWeights
from slipstream.train.options import RunOptions
from slipstream.train.sharding import whole
from slipstream.train.transfer import Numbers

Loss = tuple[Tensor, Numbers]


class Task(Protocol):
    """What is trained: a module, where its rows come from, and what is minimised.

    `loss` gives a scalar that is a mean over rows, so that the mean over processes is that of all rows, and numbers for
    the log, which stay on the device: to read one would wait for it. `moving` are buffers
    that `loss` moves by averages (codebooks): the loop averages them over processes. `after_step` follows every change
    of the weights. `row_seconds` is the audio per row, `positions_per_second` what most layers see of it.
    """

    row_seconds: float
    positions_per_second: float

    @property
    def module(self) -> nn.Module: ...

    def batch(self, first_row: int, rows: int) -> Any: ...
    def loss(self, batch: Any, step: int, progress: float) -> Loss: ...
    def moving(self) -> list[Tensor]: ...
    def after_step(self) -> None: ...


@runtime_checkable
class Prepares(Protocol):
    """A task that starts some weights from its rows, before the optimiser takes its copy of them."""

    def prepare(self) -> None: ...


@runtime_checkable
class FreezesEncoder(Protocol):
    """A task that saves the work of its encoder's gradients while `encoder_learns` is false."""

    encoder_learns: bool


class Weights(Protocol):
    """What the optimiser moves (`masters`, float32, by name), and how it meets the module that computes.

    `loss` is the task's. `collect`, after a step's backward passes, leaves the means over processes in the masters'
    gradients and in the task's moving buffers. `publish` puts the masters into the module. `assemble`, at the end of a
    run, gives the first process a module with all of its weights.
    """

    masters: dict[str, Tensor]

    def loss(self, batch: Any, step: int, progress: float) -> Loss: ...
    def collect(self) -> None: ...
    def publish(self) -> None: ...
    def assemble(self) -> None: ...


def hold(task: Task, options: RunOptions, dtype: torch.dtype) -> Weights:
    """The task's weights on `options.device`: sharded if `options.shard` is set and there are several processes."""
    if shards(options) > 1:
        return Sharded(task, torch.device(options.device).type, dtype)
    task.module.to(options.device)
    return Replicated(task, dtype)


def dtype_of(options: RunOptions) -> torch.dtype:
    """What the modules of a run compute in, once `dtype = "auto"` is settled (`train.precision`)."""
    assert options.dtype != "auto"
    return torch.bfloat16 if options.dtype == "bfloat16" else torch.float32


@contextmanager
def processes(options: RunOptions) -> Iterator[None]:
    """Join the other processes when torchrun started this one."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    if options.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if options.device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the first of the run, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def from_first(number: float, device: str) -> float:
    """The first process's `number` in all of them, for what they must decide alike."""
    if not dist.is_initialized():
        return number
    shared = torch.tensor(float(number), device=device)
    dist.broadcast(shared, 0)
    return float(shared)


def shards(options: RunOptions) -> int:
    """Into how many parts the weights are cut."""
    return dist.get_world_size() if options.shard and dist.is_initialized() else 1


class Replicated(MasterWeights):
    """All weights in each process; the gradients are averaged."""

    def __init__(self, task: Task, dtype: torch.dtype) -> None:
        super().__init__(task.module, dtype)
        self._task = task

    def loss(self, batch: Any, step: int, progress: float) -> Loss:
        return self._task.loss(batch, step, progress)

    def collect(self) -> None:
        super().collect()
        if not dist.is_initialized():
            return
        for master in self.masters.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        _average([*(w.grad for w in self.masters.values() if w.grad is not None), *self._task.moving()])

    def assemble(self) -> None:
        pass


class Sharded:
    """A part of the weights in each process, float32 where they learn; modules compute in `dtype`."""

    def __init__(self, task: Task, device: str, dtype: torch.dtype) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # takes a second

        self._task = task
        mesh = init_device_mesh(device, (dist.get_world_size(),))
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for parameter in task.module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        for module in task.module.modules():
            if isinstance(module, TransformerLayer):
                fully_shard(module, mesh=mesh, mp_policy=policy)
        # Tasks call parts of their module, never the whole, so that the root of what is sharded is the loss itself.
        self._loss = _LossModule(task)
        fully_shard(self._loss, mesh=mesh, mp_policy=policy)
        self.masters: dict[str, Tensor] = {
            name: parameter for name, parameter in task.module.named_parameters() if parameter.requires_grad
        }

    def loss(self, batch: Any, step: int, progress: float) -> Loss:
        loss: Loss = self._loss(batch, step, progress)
        return loss

    def collect(self) -> None:
        _average(self._task.moving())

    def publish(self) -> None:
        pass

    def assemble(self) -> None:
        for name, parameter in list(self._task.module.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            gathered = nn.Parameter(whole(parameter.detach()), parameter.requires_grad)
            setattr(self._task.module.get_submodule(owner), leaf, gathered)


class _LossModule(nn.Module):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.module = task.module
        self._task = task

    def forward(self, batch: Any, step: int, progress: float) -> Loss:
        return self._task.loss(batch, step, progress)


def _average(tensors: Iterable[Tensor]) -> None:
    """The mean of each tensor over processes, in place, in one message."""
    given = list(tensors)
    if not given:
        return
    flat = torch.cat([t.flatten() for t in given])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    offset = 0
    for tensor in given:
        tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
        offset += tensor.numel()
