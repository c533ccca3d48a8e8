"""Draw rows ahead of use, by a thread or by processes, in order."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

_Order = TypeVar("_Order")
_Drawn = TypeVar("_Drawn")


SHARED_BYTES = 1 << 20
"""Arrays of at least this size come from a process through shared memory; a pipe copies them three times."""
_SHARED_MEMORY = "/dev/shm"


def prefetch(
    draw: Callable[[_Order], _Drawn], orders: Iterator[_Order], depth: int = 4, workers: int = 0
) -> Generator[_Drawn, None, None]:
    """`draw` of each of `orders`, up to `depth` of them ahead of use. Closing it ends the thread or the processes.

    Args:
        orders: what is drawn, without end; read by this process, so that it may change on the way.
        workers: processes, copies of this one (fork), each ahead by `depth`; 0: a thread.
    """
    return _by_processes(draw, orders, depth, workers) if workers else _by_thread(draw, orders, depth)


def _by_thread(draw: Callable[[_Order], _Drawn], orders: Iterator[_Order], depth: int) -> Generator[_Drawn, None, None]:
    ready: queue.Queue[_Drawn | BaseException] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: _Drawn | BaseException) -> None:
        while not closed.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.2)
                return

    def work() -> None:
        try:
            for order in orders:
                if closed.is_set():
                    return
                put(draw(order))
        except BaseException as error:
            put(error)

    worker = threading.Thread(target=work, daemon=True, name="sampler")
    worker.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        with suppress(queue.Empty):
            ready.get_nowait()  # wakes it, if it waits for room
        worker.join()  # a thread that the interpreter's end meets in C++ code aborts the process


class _Drawing(Dataset[_Drawn], Generic[_Order, _Drawn]):
    def __init__(self, draw: Callable[[_Order], _Drawn]) -> None:
        self._draw = draw

    def __getitem__(self, order: _Order) -> _Drawn:
        return self._draw(order)


def _by_processes(
    draw: Callable[[_Order], _Drawn], orders: Iterator[_Order], depth: int, workers: int
) -> Generator[_Drawn, None, None]:
    loader: DataLoader[_Drawn] = DataLoader(
        _Drawing(draw),
        batch_size=None,
        sampler=orders,
        num_workers=workers,
        prefetch_factor=depth,
        collate_fn=_same,
        multiprocessing_context="fork",
        worker_init_fn=_begin,
    )
    yield from loader


def _same(drawn: _Drawn) -> _Drawn:
    return drawn


def _begin(number: int) -> None:
    """Leave the signals that end a run to the training process, which ends its step first."""
    torch.set_num_threads(1)
    ForkingPickler.register(np.ndarray, _share)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _share(array: npt.NDArray[Any]) -> Any:
    """Reduce a large array to a tensor, which PyTorch moves to shared memory; any other as it is pickled elsewhere."""
    if array.nbytes < SHARED_BYTES or array.dtype.kind not in "fiub" or not _has_room(array.nbytes):
        return array.__reduce__()
    return _unshare, (torch.from_numpy(np.ascontiguousarray(array)),)


def _unshare(tensor: Tensor) -> npt.NDArray[Any]:
    return tensor.numpy()


def _has_room(size: int) -> bool:
    """Whether the shared memory, which a container limits, has room for several arrays of this size."""
    try:
        free = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return False
    return free.f_bavail * free.f_frsize > 8 * size
