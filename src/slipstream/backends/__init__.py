"""The backends: implementations of `Runner`, and the registry that finds them by name.

To add a fourth backend, write a package next to `torch`, `onnx` and `mlx`, and register it (the end of this text lists
the places). The package provides:

1. **`opening.open_runner(sources, load, options)`**, which returns a runner. It raises `ConfigError` for a setting that
   the backend does not support, and `BackendError` for a device that it cannot use.
2. **`devices.find_devices()`**, which lists the devices of this machine that the backend runs on, fastest first. Its
   module imports the backend's library only inside the function.
3. **A `Runner`** (`slipstream.model.runner`), a subclass of `BaseRunner`, with `reset`, `step`, `force`, `snapshot` and
   `restore`. `step` calls `check_step` first and returns numpy arrays, with a `Steering` also `Candidates`.
   `BaseRunner` supplies `launch` and `savepoint` through `StepwiseRunner`; replace them if the device can compute while
   the host does other work. Its `max_ahead` is 0: a runner that can encode several frames of a stream in one call sets
   it, and has `encode`.

The runner computes the codec and the LM from tensors with canonical names (`slipstream.model.names`), in the shapes
that follow from the configuration. `load()` returns them in a `Checkpoint`.

What does not depend on the array library is in `slipstream.model.numerics`, in numpy: mel filter banks, rotary angles,
which columns of a ring a query sees, sinusoids, the condition vector, the codebooks' vectors, and constants. Compute
them there on the host, and convert the result. This keeps the backends equal to each other.

A backend must meet these requirements, which `tests/laws` checks for every backend in `tests/laws/backends.py`:

- A stream cut into frames gives the output of the whole sequence.
- A slot's output depends on that slot's audio only. Inactive slots keep their state bit for bit.
- `snapshot` copies a slot's state, and `restore` accepts it in any slot.

The laws have configurations with every kind of codec and decoder, Whisper's included, and also test steering, delays,
languages and streams that begin at a later frame. Its own tests check that tokens equal those of the PyTorch backend
with float32 weights, and that probabilities differ by rounding only.

Two parts are easy to get wrong:

- **Rings.** A ring that is advanced by T positions in one step needs `context + T - 1` columns
  (`numerics.ring_capacity`). Positions grow without limit: compute angles in float64, and columns in int64.
- **Position 0.** It holds the initial tokens and is the same for every stream. Run it once when the runner is created,
  and copy the state into a slot on `reset`. The text token it yields is the last text token of the first frame.

To register the backend, change these places:

- `BACKENDS` below: its entry.
- `pyproject.toml`: an extra with its library, and that library in `constraints.txt`; the package in the import contract
  "No backend imports another", and in the `source_modules` of "Only the PyTorch backend uses the PyTorch modules"; the
  library in the `forbidden_modules` of the other contracts, and, if it has no types,
  in mypy's list of such modules.
- `tests/laws/backends.py`: its runners, for the laws. Its own tests are in `tests/backends/<name>`.
- `tests/test_imports.py`: the library in `HEAVY`. `tests/test_bundle.py`: the list of all backends.
- `slipstream.cli.doctor`: the library in `_PACKAGES`. `slipstream.cli.options`: the help of `--backend`, `--device` and
  `--quantize`. The docstrings of `ModelBundle.open`, `slipstream.load`, `ray.serve.app` and `ray.data.transcribe`.
- A guide in `docs/guides`, with its entry in `mkdocs.yml` and in the table "Documentation" of the README; the extra in
  the README and the Makefile.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from slipstream.checkpoints.checkpoint import Checkpoint
    from slipstream.checkpoints.sources import Sources
    from slipstream.model.config import SamplingConfig
    from slipstream.model.runner import Runner

Progress = Callable[[int, int], None]
"""Called with the number of parameters that are converted, and with the total number."""
Quantize = Literal["int8", "fp8", "int4", "none"]
KVCache = Literal["auto", "int8"]


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
    kv_cache: KVCache = "auto"

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
        finder: `module:function` of `find_devices() -> Sequence[str]`: the devices of this machine that the backend
            runs on, the fastest first. It is called only if the package is installed.
        package: The package that must be installed.
        extra: The extra of `slipstream-stt` that installs it; empty if it is always installed.
        dtypes: Types that the LM's weights can have.
        accelerators: Names of devices, other than `cpu` and `gpu`, that select this backend.
    """

    opener: str
    finder: str
    package: str
    extra: str
    dtypes: tuple[str, ...]
    accelerators: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def devices(self) -> Sequence[str]:
        """List the devices of this machine that the backend runs on, the fastest first."""
        found: Sequence[str] = _find(self.finder)()
        return found

    def open(self, sources: Sources, load: Callable[..., Checkpoint], options: RunnerOptions) -> Runner:
        """Import the backend and open a model with it."""
        runner: Runner = _find(self.opener)(sources, load, options)
        return runner


def _find(name: str) -> Callable[..., Any]:
    module, function = name.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


BACKENDS: dict[str, Backend] = {
    "onnx": Backend(
        opener="slipstream.backends.onnx.opening:open_runner",
        finder="slipstream.backends.onnx.devices:find_devices",
        package="onnxruntime",
        extra="",
        dtypes=("float32",),
    ),
    "torch": Backend(
        opener="slipstream.backends.torch.opening:open_runner",
        finder="slipstream.backends.torch.devices:find_devices",
        package="torch",
        extra="torch",
        dtypes=("float32", "bfloat16"),
        accelerators=("cuda",),
    ),
    "mlx": Backend(
        opener="slipstream.backends.mlx.opening:open_runner",
        finder="slipstream.backends.mlx.devices:find_devices",
        package="mlx",
        extra="mlx",
        dtypes=("float32", "bfloat16"),
        accelerators=("mps", "metal"),
    ),
}
"""The backends by name. Of two that run on the same device, the first is chosen."""
