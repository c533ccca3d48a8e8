"""How many operations a step launches, counted without a GPU: `python -m benchmarks.gpu.launches`.

The step runs on PyTorch's device "meta", whose tensors have shapes and no numbers. Views and allocations launch
nothing. An operation that reads a tensor on the host, or one that the host would wait for, raises: a CUDA graph could
not hold it.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from benchmarks.common import Row, table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import slipstream.nn
from slipstream.backends.torch import runner as runner_module
from slipstream.backends.torch.runner import TorchRunner
from slipstream.checkpoints.presets import PRESETS
from slipstream.model.config import STTConfig
from slipstream.nn import fused
from slipstream.nn.lm import LM
from slipstream.nn.mimi import Codebook, Mimi
from slipstream.nn.ring import RingFormat

DEVICE = torch.device("meta")
FREE = ("empty", "new_empty", "detach", "alias", "lift_fresh", "resolve", "_reshape_alias", "_unsafe_view")
"""Operations that launch nothing, as views do."""
ROWS = 64


class Launches(TorchDispatchMode):
    """Counts what would run on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in (*args, *(kwargs or {}).values()):
            for tensor in given if isinstance(given, (list, tuple)) else (given,):
                if isinstance(tensor, Tensor) and tensor.device != DEVICE and tensor.dim():
                    raise RuntimeError(f"{func} reads a tensor of {tuple(tensor.shape)} on the host")
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(FREE):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def count(
    config: STTConfig, *, kernels: bool, gathered: bool = False, rows: int = ROWS, int8: bool = False
) -> Counter[str]:
    """Count the operations of a step by name; those of `kernels.py` are one each."""
    with torch.inference_mode(), _kernels(kernels) as own:
        with DEVICE:
            codec, lm = Mimi(config.codec), LM(config.lm).bfloat16()
        for module in codec.modules():
            if isinstance(module, Codebook):
                module.refresh()
            for name, buffer in module._buffers.items():  # those made from arrays are on the host
                if buffer is not None:
                    module._buffers[name] = buffer.to(DEVICE)
        runner = TorchRunner(
            config, codec, lm, slots=10 * rows, buckets=(rows, 10 * rows), rings=RingFormat(int8=int8), kernels=kernels
        )
        bucket = next(bucket for bucket in runner._buckets.all if (bucket.size, bucket.gathered) == (rows, gathered))
        runner._steers = False
        own.clear()
        with Launches() as launches:
            runner._step(bucket)
    return launches.counts + own


@contextmanager
def _kernels(wanted: bool) -> Iterator[Counter[str]]:
    """Put functions that only return the right shapes in the place of the Triton kernels."""
    counts: Counter[str] = Counter()

    def stub(name: str, result: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*arguments: Any, **_: Any) -> Tensor:
            counts[name] += 1
            return result(*arguments)

        return run

    module = ModuleType("slipstream.nn.kernels")
    shapes: dict[str, Callable[..., Tensor]] = {
        "append": lambda qkv, *_: qkv.new_empty(qkv.shape[0], qkv.shape[3], qkv.shape[1], qkv.shape[4]),
        "attend": lambda q, *_: q.new_empty(q.shape[0], q.shape[2], q.shape[1] * q.shape[3]),
        "rms_norm": lambda x, *_: torch.empty_like(x),
        "silu_multiply": lambda x: x.new_empty(*x.shape[:-1], x.shape[-1] // 2),
        "elu_after": lambda state, x: x.new_empty(*x.shape[:-1], state.shape[-1] + x.shape[-1]),
    }
    for name, result in shapes.items():
        setattr(module, name, stub(name, result))
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module  # not `patch.dict`, which would forget what PyTorch imports meanwhile
    with (
        patch.object(slipstream.nn, "kernels", module, create=True),
        patch.object(fused, "_fusible", lambda x: wanted),
        patch.object(runner_module, "kernels_work", lambda *_: True),
        patch.object(runner_module, "sdpa_name", lambda *_: "meta"),
    ):
        try:
            yield counts
        finally:
            del sys.modules[module.__name__]
            if before is not None:
                sys.modules[module.__name__] = before


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows: list[Row] = []
    for model in ("kyutai/stt-1b-en_fr", "kyutai/stt-2.6b-en"):
        config = PRESETS[model]
        for name, given in (
            ("PyTorch", {"kernels": False}),
            ("PyTorch, int8 keys", {"kernels": False, "int8": True}),
            ("kernels", {"kernels": True}),
            ("kernels, gathered", {"kernels": True, "gathered": True}),
        ):
            counts = count(config, **given)
            most = ", ".join(f"{number} {kind}" for kind, number in counts.most_common(6))
            rows.append({"model": model, "step": name, "operations": counts.total(), "most": most})
    print(table(rows))


if __name__ == "__main__":
    main()
