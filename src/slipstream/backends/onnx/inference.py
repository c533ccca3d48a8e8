"""ONNX Runtime sessions, and runs of them over fixed buffers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from slipstream.backends.onnx.graph import VERSION, Array, Model
from slipstream.errors import CheckpointError

SPIN_MICROSECONDS = 50
"""How long a thread spins for its next piece of work before it sleeps.

The pieces of a step follow each other faster than that: a step of a published model is a ninth shorter than with
threads that sleep immediately. Between frames the threads sleep.
"""
# Before 1.26 the time was fixed, and a spinning thread used a core for tens of milliseconds.
_CAN_BOUND_SPINNING = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 26)

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def open_session(source: Model | Path, *, threads: int) -> onnxruntime.InferenceSession:
    """Load a model from memory, or from an ONNX file, whose weights are mapped.

    Raises:
        CheckpointError: The file is missing, damaged or not written by this version.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if _CAN_BOUND_SPINNING else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    options.log_severity_level = 4  # errors are raised as well
    if isinstance(source, Path):
        return _open_file(source, options)
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in source.weights.values()]
    options.add_external_initializers(list(source.weights), values)
    return onnxruntime.InferenceSession(source.proto, options, providers=["CPUExecutionProvider"])


def input_type(session: onnxruntime.InferenceSession, name: str) -> npt.DTypeLike:
    """The type of a graph's input."""
    return _DTYPES[next(node.type for node in session.get_inputs() if node.name == name)]


def bind(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
) -> onnxruntime.SessionIOBinding:
    """Bind contiguous arrays to the inputs and outputs of a session."""
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    return binding


class Bound:
    """A session that reads from and writes to fixed arrays.

    The first dimension of `inputs` and `outputs` is the slots. A run uses the first rows of these, and all of `shared`.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        shared: Mapping[str, Array],
    ) -> None:
        self._session = session
        self._inputs, self._outputs, self._shared = inputs, outputs, shared
        self._bindings: dict[int, onnxruntime.SessionIOBinding] = {}

    def run(self, rows: int) -> None:
        """Run the first `rows` slots."""
        if rows not in self._bindings:
            inputs = {**self._shared, **{name: array[:rows] for name, array in self._inputs.items()}}
            outputs = {name: array[:rows] for name, array in self._outputs.items()}
            self._bindings[rows] = bind(self._session, inputs, outputs)
        self._session.run_with_iobinding(self._bindings[rows])


def physical_cores(own_group: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the physical cores that this process may use. Returns 0, ONNX Runtime's default, if that is unknown.

    A container with a CPU limit sees all cores; more threads than it may run would wait for each other within a step.

    Args:
        own_group: Names the process's control group.
        groups: Where the limits of all groups are.
    """
    if not hasattr(os, "sched_getaffinity"):
        return 0
    cores = len({_core(cpu) for cpu in os.sched_getaffinity(0)})
    try:
        path = own_group.read_text().rpartition("0::/")[2].strip()
        quota, period = (groups / path / "cpu.max").read_text().split()
        return min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no limit ("max"), or no control groups of version 2
        return cores


def _core(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _open_file(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (
        ort_errors.Fail,
        ort_errors.InvalidArgument,
        ort_errors.InvalidGraph,
        ort_errors.InvalidProtobuf,
        ort_errors.NoSuchFile,
        ort_errors.NotImplemented,
        ort_errors.RuntimeException,
    ) as error:
        raise CheckpointError(f"{path}: ONNX Runtime cannot load it: {error}") from error
    found = session.get_modelmeta().custom_metadata_map
    if found != VERSION:
        raise CheckpointError(f"{path} was not made by this version of Slipstream: convert the checkpoint again")
    return session
