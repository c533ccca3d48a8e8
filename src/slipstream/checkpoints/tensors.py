"""Read safetensors files as memory-mapped arrays, and write them atomically. Pickles are refused.

A file of 5 GB costs no memory to open: each array is a view of the mapped file, private and writable, so a change
stays in memory. bfloat16 arrays have the dtype of `ml_dtypes`.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from slipstream.errors import CheckpointError

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""The types that weights can have, by name."""

_SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".th"}
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_HALF_EXPONENTS = {DTYPES["float16"]: 0x7C00, DTYPES["bfloat16"]: 0x7F80}
_PIECE = 1 << 22
_LENGTH_BYTES = 8  # a safetensors file starts with the length of its JSON header


def read_tensors(path: Path) -> dict[str, Array]:
    """Open a safetensors file: arrays by name, each a view of the mapped file.

    Raises `CheckpointError` for a file that is missing, cut short, not safetensors, or a pickle.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(_LENGTH_BYTES)
            _refuse_pickle(path, start)
            if size < _LENGTH_BYTES:
                raise CheckpointError(f"{path}: {size} bytes are not a safetensors file; download or copy it again")
            # Copy-on-write: torch warns about arrays that it could not write to.
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    header, data_start = _header(path, start, size, buffer)
    return {name: _view(path, name, entry, data_start, size, buffer) for name, entry in header.items()}


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file. It replaces an older file atomically, so that no reader sees a part of it.

    Raises `CheckpointError` when it cannot be written, such as on a full disk.
    """
    # transformers checks "format" before it loads a file.
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        save_file(contiguous, temporary, metadata={"format": "pt"})
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp creates files that only their owner can read
        Path(temporary).replace(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def is_finite(array: Array) -> bool:
    """Whether an array of floats holds neither NaN nor infinity; an array of whole numbers always does."""
    if array.size == 0 or array.dtype.kind in "biu":
        return True
    exponent = _HALF_EXPONENTS.get(array.dtype)
    if exponent is not None:
        # In a number that is not finite the exponent is all ones. The bits' maximum needs no copy in float32.
        bits = array.reshape(-1).view(np.uint16)
        pieces = (bits[i : i + _PIECE] for i in range(0, bits.size, _PIECE))
        return all(int((piece & 0x7FFF).max()) < exponent for piece in pieces)
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def check_finite(name: str, array: Array) -> None:
    """Raise `CheckpointError` for a tensor with NaN or infinity, which cannot be quantised."""
    if not is_finite(array):
        bad = int(array.size - np.isfinite(array).sum())
        reason = f"{bad} of {array.size} values are not finite (NaN or infinity)"
        raise CheckpointError(f"{name} cannot be quantised: {reason}; all must be finite numbers")


def _refuse_pickle(path: Path, start: bytes) -> None:
    if path.suffix in _PICKLE_SUFFIXES or start.startswith(_PICKLE_MAGIC):
        raise CheckpointError(
            f"{path} is a pickle, which can run any program when it is opened; Slipstream reads safetensors only. "
            f"If you trust where it came from, convert it: python -c 'import torch, safetensors.torch as s; "
            f's.save_file(torch.load("{path.name}", map_location="cpu", weights_only=True), "model.safetensors")\''
        )
    if path.suffix == ".gguf" or start.startswith(b"GGUF"):
        raise CheckpointError(f"{path}: GGUF files are not supported; use the safetensors file of the same model")


def _header(path: Path, start: bytes, size: int, buffer: mmap.mmap) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(start, "little")
    data_start = _LENGTH_BYTES + length
    if data_start > size:
        raise CheckpointError(
            f"{path}: not a safetensors file, or cut short: its header would end at byte {data_start} of {size}"
        )
    try:
        header = json.loads(buffer[_LENGTH_BYTES:data_start])
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: not a safetensors file: its header is not a table")
    header.pop("__metadata__", None)
    return header, data_start


def _view(path: Path, name: str, entry: Any, data_start: int, size: int, buffer: mmap.mmap) -> Array:
    try:
        dtype_name, shape, (begin, end) = entry["dtype"], tuple(map(int, entry["shape"])), entry["data_offsets"]
        count = math.prod(shape)
        begins, ends = data_start + int(begin), data_start + int(end)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header's entry for {name} is damaged: {entry!r}") from error
    if dtype_name not in _SAFETENSORS_DTYPES:
        known = ", ".join(_SAFETENSORS_DTYPES)
        raise CheckpointError(f"{path}: {name} is of type {dtype_name}; known types: {known}")
    dtype = _SAFETENSORS_DTYPES[dtype_name]
    if ends > size:
        raise CheckpointError(
            f"{path} is cut short: {name} would end at byte {ends}, the file at {size}; download or copy it again"
        )
    if begins < data_start or min(shape, default=0) < 0 or ends - begins != count * dtype.itemsize:
        raise CheckpointError(f"{path}: the header's entry for {name} is damaged: {entry!r}")
    if count == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(buffer, dtype=dtype, count=count, offset=begins).reshape(shape)
