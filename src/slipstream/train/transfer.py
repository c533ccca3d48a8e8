"""Between the host and a device, without waiting for it: batches there, and numbers back a step later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

Numbers = dict[str, Tensor]
"""Losses and other scalars by name, on the device and without a gradient."""


def send(array: npt.NDArray[Any], device: torch.device | str) -> Tensor:
    """Copy an array to a device.

    On CUDA it goes through pinned memory: a copy from ordinary memory would wait for all work of the device.

    Example:
        >>> send(np.zeros((2, 3)), "cpu").shape
        torch.Size([2, 3])
    """
    tensor = torch.from_numpy(array)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Receipt:
    """Numbers on their way from a device to the host.

    Args:
        numbers: Scalars by name.
    """

    def __init__(self, numbers: Mapping[str, Tensor]) -> None:
        self._names = list(numbers)
        values = torch.stack([value.detach().float() for value in numbers.values()])
        self._done: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(len(values), pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()
        else:
            self._values = values

    def read(self) -> dict[str, float]:
        """Wait for the numbers and return them."""
        if self._done is not None:
            self._done.synchronize()
        return dict(zip(self._names, self._values.tolist(), strict=True))
