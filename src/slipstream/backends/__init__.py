"""The backends, each an implementation of `Runner`, and the registry that names them. None imports another.

A new backend is a package here and an entry in `BACKENDS`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from slipstream.checkpoints.checkpoint import Checkpoint
    from slipstream.checkpoints.sources import Sources
    from slipstream.model.config import SamplingConfig
    from slipstream.model.runner import Runner

Progress = Callable[[int, int], None]
"""Called with the number of parameters that are converted, and with the total number."""
Quantize = Literal["int8", "int4", "none"]


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How to run a model. See `ModelBundle.open` for the meaning of each field."""

    device: str = "cpu"
    slots: int = 1
    dtype: str = "auto"
    quantize: Quantize | None = None
    threads: int | None = None
    sampling: SamplingConfig | None = None
    seed: int | None = None
    progress: Progress | None = None

    @property
    def common(self) -> dict[str, Any]:
        """The arguments that every runner takes."""
        return {"slots": self.slots, "sampling": self.sampling, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class Backend:
    """An entry of the registry.

    Attributes:
        opener: `module:function` of `open_runner(sources, load, options) -> Runner`. `load` is `read_checkpoint` of
            the sources, for backends that need the tensors.
        package: The package that must be installed.
        extra: The extra of `slipstream-stt` that installs it; empty if it is always installed.
        dtypes: Types that the LM's weights can have.
    """

    opener: str
    package: str
    extra: str
    dtypes: tuple[str, ...]

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def open(self, sources: Sources, load: Callable[..., Checkpoint], options: RunnerOptions) -> Runner:
        """Import the backend and open a model with it."""
        module, function = self.opener.split(":")
        runner: Runner = getattr(importlib.import_module(module), function)(sources, load, options)
        return runner


BACKENDS: dict[str, Backend] = {
    "torch": Backend("slipstream.backends.torch.opening:open_runner", "torch", "torch", ("float32", "bfloat16")),
    "onnx": Backend("slipstream.backends.onnx.opening:open_runner", "onnxruntime", "", ("float32",)),
    "mlx": Backend("slipstream.backends.mlx.opening:open_runner", "mlx", "mlx", ("float32", "bfloat16")),
}
