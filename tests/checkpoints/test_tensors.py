"""Tensor files: mapped when read, whole when written, refused with a reason when they are anything else."""

from __future__ import annotations

import io
import json
import pickle
import signal
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from slipstream.checkpoints.tensors import is_finite, read_tensors, write_tensors
from slipstream.errors import CheckpointError

TENSORS = {
    "odd bytes": np.arange(3, dtype=np.uint8),  # what follows is not aligned to its size
    "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "f16": np.linspace(-1, 1, 5, dtype=np.float16),
    "bf16": np.linspace(-3, 3, 8).astype(ml_dtypes.bfloat16).reshape(2, 2, 2),
    "u32": np.array([[2**32 - 1]], dtype=np.uint32),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(2.5, np.float64),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    return path


def rewritten(path: Path, change: Any) -> Path:
    """The file with its header changed, and the data as it was."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    return path


def test_written_tensors_are_read_back_bit_for_bit(path: Path) -> None:
    read = read_tensors(path)
    assert read.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


def test_arrays_out_of_order_in_memory_are_written_in_order(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    write_tensors(tmp_path / "x.safetensors", {"turned": array.T, "sliced": array[:, ::2]})
    read = read_tensors(tmp_path / "x.safetensors")
    assert np.array_equal(read["turned"], array.T)
    assert np.array_equal(read["sliced"], array[:, ::2])


def test_arrays_are_views_of_the_file_that_can_be_changed_without_changing_it(path: Path) -> None:
    before = path.read_bytes()
    first, second = read_tensors(path), read_tensors(path)
    assert not first["f32"].flags.owndata
    first["f32"][0, 0] = 7
    assert second["f32"][0, 0] == 0
    assert path.read_bytes() == before


def test_a_mapped_file_can_be_replaced_by_its_own_tensors(path: Path) -> None:
    mapped = read_tensors(path)
    write_tensors(path, {"f32": mapped["f32"] * 2})
    assert np.array_equal(mapped["f32"], TENSORS["f32"])
    assert np.array_equal(read_tensors(path)["f32"], TENSORS["f32"] * 2)
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("slipstream.checkpoints.tensors.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tensors(path, {})
    assert read_tensors(path).keys() == TENSORS.keys()
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_reported_with_the_name_of_the_file(path: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    limits, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=rf"{path}: cannot be written: .*File too large"):
            write_tensors(path, {"a": np.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, action)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("lost", [1, 8, 20])
def test_truncated_data_is_reported(path: Path, lost: int) -> None:
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(CheckpointError, match=r"is cut short: .* would end at byte \d+, the file at \d+; download"):
        read_tensors(path)


@pytest.mark.parametrize("kept", [0, 3, 8, 100])
def test_a_truncated_header_is_reported(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"not a safetensors file; download|cut short"):
        read_tensors(path)


def test_files_of_other_types_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"<!doctype html><html>not found</html>")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_tensors(path)
    path.write_bytes((3).to_bytes(8, "little") + b"abc")
    with pytest.raises(CheckpointError, match="its header is not JSON"):
        read_tensors(path)
    path.write_bytes((2).to_bytes(8, "little") + b"[]")
    with pytest.raises(CheckpointError, match="its header is not a table"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header["f32"].update(shape=[2, 4]), "entry for f32 is damaged"),
        (lambda header: header["f32"].update(shape=[-2, -3]), "entry for f32 is damaged"),
        (lambda header: header["f32"].update(shape="wide"), "entry for f32 is damaged"),
        (lambda header: header["f32"].update(data_offsets=[-8, 16]), "entry for f32 is damaged"),
        (lambda header: header["f32"].pop("dtype"), "entry for f32 is damaged"),
        (lambda header: header.update(f32=3), "entry for f32 is damaged"),
        (lambda header: header["f32"].update(dtype="F8_E4M3"), "f32 is of type F8_E4M3; known types: .*BF16"),
    ],
)
def test_a_damaged_header_names_the_tensor(path: Path, change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_tensors(rewritten(path, change))


def test_a_pickle_is_refused_by_its_name_and_by_its_content(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("archive/data.pkl", pickle.dumps({}))
    for name, content in [
        ("model.pt", b""),
        ("model.pth", b""),
        ("pytorch_model.bin", b""),
        ("model.safetensors", archive.getvalue()),
        ("model.safetensors", pickle.dumps({"a": 1})),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is a pickle, which can run any program.*weights_only=True"):
            read_tensors(path)


def test_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(CheckpointError, match="GGUF files are not supported"):
        read_tensors(path)


def test_missing_files_and_folders_are_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("size", [1, 1000, (1 << 22) + 5])
def test_one_number_that_is_not_finite_is_found(dtype: Any, size: int) -> None:
    array = np.linspace(-60_000, 60_000, size, dtype=np.float32).astype(dtype)
    assert is_finite(array)
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        array[-1] = bad
        assert not is_finite(array)
    array[-1] = np.finfo(np.float16).max
    assert is_finite(array)


def test_integers_and_empty_arrays_are_finite() -> None:
    assert is_finite(np.array([2**31], np.uint32))
    assert is_finite(np.zeros((0, 3), np.float32))
