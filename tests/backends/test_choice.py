"""The backend and device that are chosen, for each kind of machine and installation."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from slipstream.backends import BACKENDS, Backend, choice
from slipstream.backends.torch import devices
from slipstream.errors import BackendError

LINUX, APPLE = ("Linux", "x86_64"), ("Darwin", "arm64")


@dataclass(frozen=True)
class Machine:
    system: tuple[str, str] = LINUX
    installed: tuple[str, ...] = ()
    cuda: bool = False


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], None]:
    def set_machine(machine: Machine) -> None:
        monkeypatch.setattr(choice, "has", lambda backend: backend in ("onnx", *machine.installed))
        monkeypatch.setattr(devices, "has_cuda", lambda: machine.cuda)
        monkeypatch.setattr(platform, "system", lambda: machine.system[0])
        monkeypatch.setattr(platform, "machine", lambda: machine.system[1])

    return set_machine


@pytest.mark.parametrize(
    ("where", "device", "backend", "expected"),
    [
        (Machine(), "auto", "auto", ("onnx", "cpu")),
        (Machine(APPLE, ("mlx",)), "auto", "auto", ("mlx", "gpu")),
        (Machine(installed=("mlx",)), "auto", "auto", ("onnx", "cpu")),
        (Machine(installed=("torch",), cuda=True), "auto", "auto", ("torch", "cuda")),
        (Machine(installed=("torch",)), "auto", "torch", ("torch", "cpu")),
        (Machine(installed=("torch",), cuda=True), "auto", "torch", ("torch", "cuda")),
        (Machine(installed=("torch",), cuda=True), "auto", "onnx", ("onnx", "cpu")),
        (Machine(installed=("mlx",)), "auto", "mlx", ("mlx", "cpu")),
        (Machine(APPLE, ("torch", "mlx")), "cpu", "auto", ("onnx", "cpu")),
        (Machine(installed=("torch",), cuda=True), "cpu", "torch", ("torch", "cpu")),
        (Machine(installed=("torch",)), "cuda:1", "auto", ("torch", "cuda:1")),
        (Machine(APPLE, ("torch", "mlx")), "gpu", "auto", ("mlx", "gpu")),
        (Machine(APPLE, ("torch", "mlx")), "mps", "auto", ("mlx", "mps")),
        (Machine(installed=("torch", "mlx"), cuda=True), "gpu", "auto", ("torch", "cuda")),
        (Machine(installed=("torch",), cuda=True), "gpu", "torch", ("torch", "cuda")),
    ],
)
def test_the_device_chooses_the_backend(where, device, backend, expected, machine):
    machine(where)
    assert choice.choose(device, backend) == expected


@pytest.mark.parametrize(
    ("where", "device", "backend", "message"),
    [
        (Machine(), "gpu", "auto", r"device='gpu': not on this machine; available: cpu \(onnx\)$"),
        (Machine(installed=("torch",)), "gpu", "auto", r"available: cpu \(onnx\), cpu \(torch\)$"),
        (Machine(installed=("torch", "mlx")), "gpu", "auto", "not on this machine"),
        (Machine(installed=("torch",), cuda=True), "mps", "torch", "the torch backend has no mps; use backend='mlx'"),
        (Machine(APPLE, ("mlx",)), "cpu", "mlx", r"device='cpu' with backend='mlx'.* available: gpu \(mlx\), cpu"),
        (Machine(APPLE, ("mlx",)), "cuda", "mlx", "the mlx backend has no cuda; use backend='torch'"),
        (Machine(), "cuda", "auto", r"pip install 'slipstream-stt\[torch\]'"),
        (Machine(), "cuda:x", "auto", "expected auto, cpu, gpu, cuda or cuda:N"),
        (Machine(), "", "auto", "expected auto, cpu, gpu, cuda or cuda:N"),
    ],
)
def test_an_unavailable_device_is_an_error_that_lists_the_available_ones(where, device, backend, message, machine):
    machine(where)
    with pytest.raises(BackendError, match=message):
        choice.choose(device, backend)


def test_no_library_is_imported_to_find_what_is_installed():
    program = (
        "import sys; from slipstream.backends import BACKENDS; [backend.installed for backend in BACKENDS.values()]; "
        "print(*{'torch', 'onnxruntime', 'mlx'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_another_backend_needs_only_an_entry_in_the_registry(monkeypatch: pytest.MonkeyPatch):
    finder = "slipstream.backends.torch.devices:find_npu"
    entry = Backend("", finder, package="json", extra="npu", dtypes=(), accelerators=("npu",))
    monkeypatch.setattr(devices, "find_npu", lambda: ("npu", "cpu"), raising=False)
    monkeypatch.setitem(BACKENDS, "npu", entry)
    assert choice.choose("npu:1") == ("npu", "npu:1")
    assert choice.choose("gpu", "npu") == ("npu", "npu")
    assert choice.choose("cpu", "npu") == ("npu", "cpu")
