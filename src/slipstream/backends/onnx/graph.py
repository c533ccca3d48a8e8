"""A graph under construction, and the finished model: a small ONNX file and a file of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slipstream.backends.onnx import protobuf

Array = npt.NDArray[Any]

VERSION = {"slipstream_graph": "2"}
"""Metadata of a model. Increment it when the inputs or outputs of the graphs change."""
INLINE_BYTES = 1024
"""Constants up to this size are in the ONNX file itself, where shape inference can read them."""
ALIGNMENT = 4096
"""Weights in a file start at multiples of a memory page, so that ONNX Runtime can map them."""


@dataclass(frozen=True)
class Model:
    """A finished graph. `proto`: the ONNX file, which refers to `weights` in `weights_file`, one after another."""

    proto: bytes
    weights: Mapping[str, Array]
    weights_file: str

    def save(self, path: Path) -> None:
        """Write the ONNX file, and the weights in the same folder."""
        with open(path.parent / self.weights_file, "wb") as file:
            for weight, offset in zip(self.weights.values(), _offsets(self.weights), strict=True):
                file.seek(offset)
                weight.tofile(file)
        path.write_bytes(self.proto)


class Graph:
    """Collects nodes in order of execution. Values are identified by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[bytes] = []
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._constants: dict[str, Array] = {}

    def input(self, name: str, dtype: str, shape: protobuf.Shape) -> str:
        self._inputs.append(protobuf.value(name, dtype, shape))
        return name

    def output(self, name: str, dtype: str, shape: protobuf.Shape) -> None:
        """Declare an output of the graph that a node writes."""
        self._outputs.append(protobuf.value(name, dtype, shape))

    def constant(self, array: npt.ArrayLike, name: str | None = None) -> str:
        name = name or f"constant_{len(self._constants)}"
        self._constants[name] = np.asarray(array, order="C")
        return name

    def op(
        self, kind: str, *inputs: str, domain: str = "", output: str | None = None, **attributes: protobuf.Attribute
    ) -> str:
        """Add a node with one output, and return the output's name. An empty input is omitted."""
        output = output or f"{kind}_{len(self._nodes)}"
        self.op_to(kind, inputs, [output], domain=domain, **attributes)
        return output

    def op_to(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        domain: str = "",
        **attributes: protobuf.Attribute,
    ) -> None:
        """Add a node that writes `outputs`. An empty output is omitted."""
        name = f"{len(self._nodes)}"
        self._nodes.append(protobuf.node(kind, name, inputs, outputs, domain, attributes))

    def split(self, x: str, sizes: Sequence[int]) -> list[str]:
        """Cut the last axis into pieces."""
        outputs = [f"split_{len(self._nodes)}_{i}" for i in range(len(sizes))]
        self.op_to("Split", [x, self.constant(np.array(sizes, np.int64))], outputs, axis=-1)
        return outputs

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """A size of 0 keeps the input's, one size of -1 follows from the others."""
        return self.op("Reshape", x, self.constant(np.array(shape, np.int64)))

    def finish(self) -> Model:
        weights_file = f"{self.name}.onnx.data"
        weights = {name: array for name, array in self._constants.items() if array.nbytes > INLINE_BYTES}
        offset = dict(zip(weights, _offsets(weights), strict=True))

        def initializer(name: str, array: Array) -> bytes:
            if name not in weights:
                return protobuf.tensor(name, array.dtype.name, array.shape, array.tobytes())
            return protobuf.external_tensor(
                name, array.dtype.name, array.shape, weights_file, offset[name], array.nbytes
            )

        initializers = [initializer(name, array) for name, array in self._constants.items()]
        graph = protobuf.graph(self.name, self._nodes, initializers, self._inputs, self._outputs)
        return Model(protobuf.model(graph, VERSION), weights, weights_file)


def _offsets(weights: Mapping[str, Array]) -> Iterator[int]:
    offset = 0
    for array in weights.values():
        yield offset
        offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
