"""The checkpoint of a run in its folder."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from slipstream.errors import CheckpointError

CHECKPOINT_FILE = "last.pt"


def read_saved(path: Path) -> dict[str, Any]:
    """A checkpoint, mapped, so that a process reads no more than its part of a large model."""
    try:
        state: Any = torch.load(path, weights_only=True, mmap=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be read: resume from a copy of it, or give another run.out") from error
    if not isinstance(state, dict) or not {"weights", "optimizer", "step", "elapsed"} <= state.keys():
        raise CheckpointError(f"{path} is no checkpoint of a training run: give this run another run.out")
    return state
