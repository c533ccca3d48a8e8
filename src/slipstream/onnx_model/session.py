"""ONNX Runtime sessions, and runs of them over fixed buffers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from slipstream.onnx_model.graph import Array, Model

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def open_session(source: Model | Path, *, threads: int | None = None) -> onnxruntime.InferenceSession:
    """Load a model from memory, or from an ONNX file whose weights lie beside it: those are mapped, not read.

    `threads`: all physical cores by default.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = physical_cores() if threads is None else threads
    options.inter_op_num_threads = 1
    # A thread that spins for its next piece of work burns a core between a stream's frames.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only: they are raised as well
    if isinstance(source, Model):
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in source.weights.values()]
        options.add_external_initializers(list(source.weights), values)
    model = source.proto if isinstance(source, Model) else str(source)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def input_type(session: onnxruntime.InferenceSession, name: str) -> tuple[npt.DTypeLike, tuple[int | str, ...]]:
    """Type and shape of a graph's input."""
    node = next(node for node in session.get_inputs() if node.name == name)
    return _DTYPES[node.type], tuple(node.shape)


class Bound:
    """A session that reads from and writes to arrays which stay where they are."""

    def __init__(
        self, session: onnxruntime.InferenceSession, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        self._session = session
        self._buffers = (inputs, outputs)
        self._binding = session.io_binding()
        for name, array in inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)


def physical_cores() -> int:
    """Cores that this process may use, two threads of one core counted once; off Linux 0: ONNX Runtime counts."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    return len({_core(cpu) for cpu in os.sched_getaffinity(0)})


def _core(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)
