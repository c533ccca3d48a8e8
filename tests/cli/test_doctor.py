"""`slipstream doctor`: what is installed, and what runs in real time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest
from tests.cli.conftest import Outcome

import slipstream
from slipstream.cli import doctor

Cli = Callable[..., Outcome]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A runner that needs 1 ms for each slot of audio that lasts 10 ms; the list contains the requested slots."""
    asked: list[dict[str, Any]] = []
    clock = [0.0]

    def load_runner(ref: str, *, slots: int, **options: Any) -> Any:
        asked.append({"ref": ref, "slots": slots, **options})

        def step(pcm_BS: Any, active_B: Any) -> None:
            assert pcm_BS.shape == (slots, 240)
            assert active_B.all()
            clock[0] += 0.001 * slots

        return SimpleNamespace(slots=slots, frame_samples=240, frame_rate=100.0, step=step)

    monkeypatch.setattr(doctor, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(slipstream, "load_runner", load_runner, raising=False)
    return asked


def test_measures_until_it_is_too_slow(cli: Cli, runner: list[dict[str, Any]]) -> None:
    where = ["--model", "x/y", "--device", "cpu", "--backend", "onnx", "--quantize", "int4", "--threads", "2"]
    outcome = cli("doctor", *where)
    assert outcome.code == 0
    lines = {line.split("  ")[1].strip(): line for line in outcome.out.splitlines() if line.startswith("  ")}
    assert "in real time" in lines["1 live"]
    assert "too slow" in lines["16 live"]
    assert [asked["slots"] for asked in runner] == [1, 4, 16]
    expected = {"ref": "x/y", "slots": 1, "backend": "onnx", "device": "cpu", "quantize": "int4", "threads": 2}
    assert runner[0] == expected


def test_doctor_lists_missing_packages_and_how_to_install_them(
    cli: Cli, runner: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        if package in ("mlx", "sounddevice"):
            raise metadata.PackageNotFoundError(package)
        return "1.2.3"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    out = cli("doctor").out
    assert "onnxruntime    1.2.3" in out
    assert 'mlx            not installed: pip install "slipstream-stt[mlx]"' in out
    assert 'microphones    recording needs the extra "mic"' in out
    assert "CUDA           needs torch" in out
    assert f"slipstream     {slipstream.__version__}" in out


def test_a_plan_calculates_the_streams_of_a_gpu(cli: Cli) -> None:
    outcome = cli("doctor", "--plan", "stt-2.6b", "--device", "h100")
    assert outcome.code == 0
    assert "stt-2.6b on h100, calculated, not measured" in outcome.out
    assert "88.6 MB per stream; 816 streams fit, 816 in real time" in outcome.out
    refused = cli("doctor", "--plan", "stt-2.6b", "--device", "tpu")
    assert refused.code != 0
    assert "--device tpu: a plan is for one of h100" in refused.err
    assert refused.out == ""
