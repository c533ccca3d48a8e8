"""The part of ONNX's file format (onnx.proto, IR version 9) that is needed to write a model.

It is a protobuf: a message is its fields, one after another, each a key (field number, wire type) and a value
(protobuf.dev/programming-guides/encoding). This module avoids a dependency on the `onnx` package,
which is larger than Slipstream. The functions are named after the messages and hold their field numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

IR_VERSION = 9
OPSETS = {"": 18, "com.microsoft": 1}

DATA_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
}
"""TensorProto.DataType by numpy's name."""

_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7
_EXTERNAL = 1

Attribute = float | int | str | Sequence[int]
Shape = Sequence[int | str]


def model(graph: bytes, metadata: Mapping[str, str]) -> bytes:
    opsets = (_field(1, domain) + _field(2, version) for domain, version in OPSETS.items())
    return (
        _field(1, IR_VERSION)
        + _field(2, "slipstream")
        + _field(7, graph)
        + _fields(8, opsets)
        + _fields(14, _entries(metadata))
    )


def graph(
    name: str,
    nodes: Iterable[bytes],
    initializers: Iterable[bytes],
    inputs: Iterable[bytes],
    outputs: Iterable[bytes],
) -> bytes:
    return _fields(1, nodes) + _field(2, name) + _fields(5, initializers) + _fields(11, inputs) + _fields(12, outputs)


def node(
    kind: str,
    name: str,
    inputs: Iterable[str],
    outputs: Iterable[str],
    domain: str,
    attributes: Mapping[str, Attribute],
) -> bytes:
    return (
        _fields(1, inputs)
        + _fields(2, outputs)
        + _field(3, name)
        + _field(4, kind)
        + _fields(5, (_attribute(key, value) for key, value in attributes.items()))
        + _field(7, domain)
    )


def value(name: str, dtype: str, shape: Shape) -> bytes:
    """A ValueInfoProto: an input or output; a string in `shape` names a dimension that is decided at run time."""
    dimensions = (_field(2 if isinstance(size, str) else 1, size) for size in shape)
    tensor_type = _field(1, DATA_TYPES[dtype]) + _field(2, _fields(1, dimensions))
    return _field(1, name) + _field(2, _field(1, tensor_type))


def tensor(name: str, dtype: str, shape: Sequence[int], data: bytes) -> bytes:
    return _tensor_head(name, dtype, shape) + _field(9, data)


def external_tensor(name: str, dtype: str, shape: Sequence[int], file: str, offset: int, length: int) -> bytes:
    """A TensorProto whose data is in another file in the same folder."""
    where = {"location": file, "offset": str(offset), "length": str(length)}
    return _tensor_head(name, dtype, shape) + _fields(13, _entries(where)) + _field(14, _EXTERNAL)


def _entries(texts: Mapping[str, str]) -> Iterable[bytes]:
    return (_field(1, key) + _field(2, text) for key, text in texts.items())


def _tensor_head(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    return _fields(1, shape) + _field(2, DATA_TYPES[dtype]) + _field(8, name)


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, float):
        body = _field(2, value) + _field(20, _FLOAT)
    elif isinstance(value, int):
        body = _field(3, value) + _field(20, _INT)
    elif isinstance(value, str):
        body = _field(4, value) + _field(20, _STRING)
    else:
        body = _fields(8, value) + _field(20, _INTS)
    return _field(1, name) + body


def _fields(number: int, values: Iterable[bytes | str | int]) -> bytes:
    return b"".join(_field(number, value) for value in values)


def _field(number: int, value: bytes | str | int | float) -> bytes:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
