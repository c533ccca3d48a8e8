"""`slipstream doctor`: installed packages, devices, and how many live streams this machine can run."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli.options import DEFAULT_MODEL, Backend, Device, Model, Quantize, Threads
from slipstream.errors import ConfigError, SlipstreamError

if TYPE_CHECKING:
    from slipstream.model.runner import Runner

_PACKAGES = {
    "numpy": None,
    "onnxruntime": None,
    "av": None,
    "soxr": None,
    "torch": "torch",
    "mlx": "mlx",
    "sounddevice": "mic",
}
"""Packages, and the extra that installs each; None for required ones."""

_SLOTS = (1, 4, 16, 64)
_PLANNED = (1, 64, 256, 400, 800, 1200)
_WARM_UP_FRAMES, _MEASURED_FRAMES = 5, 25


def doctor(
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    backend: Backend = "auto",
    quantize: Quantize = None,
    threads: Threads = None,
    plan: Annotated[
        str | None,
        typer.Option(
            "--plan",
            metavar="MODEL",
            help="Calculate how many streams of this model a GPU could run, without one. "
            "--device is h100, h200, a100 or l4.",
        ),
    ] = None,
) -> None:
    """Show versions and devices, and measure how many live streams this machine can run."""
    if plan is not None:
        lines = list(_plan(plan, device))  # an error comes before the title
        _section(f"{plan} on {device}, calculated, not measured", lines)
        return
    import slipstream

    def load(slots: int) -> Runner:
        return slipstream.load_runner(
            model, device=device, backend=backend, quantize=quantize, threads=threads, slots=slots
        )

    _section("Versions", _versions())
    _section("Machine", _machine())
    _section(f"Real time with {model}", _real_time(load))


def milliseconds_per_frame(runner: Runner) -> float:
    """Return the median time of a step with all slots active. The input is noise: it does not affect the speed."""
    import numpy as np

    pcm_BS = np.random.default_rng(0).normal(0, 0.1, (runner.slots, runner.frame_samples)).astype(np.float32)
    active_B = np.ones(runner.slots, dtype=np.bool_)
    times = []
    for _ in range(_WARM_UP_FRAMES + _MEASURED_FRAMES):
        started = time.perf_counter()
        runner.step(pcm_BS, active_B)
        times.append(time.perf_counter() - started)
    return 1000 * median(times[_WARM_UP_FRAMES:])


def _plan(model: str, device: str) -> Iterator[tuple[str, str]]:
    from slipstream.bundle import ModelBundle
    from slipstream.checkpoints.presets import PRESETS
    from slipstream.model import capacity

    if device not in capacity.GPUS:
        raise ConfigError(f"--device {device}: a plan is for one of {', '.join(capacity.GPUS)}")
    name = next((preset for preset in PRESETS if model in (preset, preset.partition("/")[2])), None)
    name = name or next((preset for preset in PRESETS if preset.partition("/")[2].startswith(f"{model}-")), None)
    config = PRESETS[name] if name else ModelBundle.resolve(model).config
    gpu = capacity.GPUS[device]
    yield "memory", f"{gpu.memory / 1e9:.1f} GB, {gpu.bandwidth / 1e12:.2g} TB/s"
    for title, int8 in (("keys bfloat16", False), ("keys int8", True)):
        found = capacity.plan(config, gpu, int8_cache=int8)
        size = f"{found.stream / 1e6:.1f} MB per stream"
        yield title, f"{size}; {found.slots} streams fit, {found.real_time} in real time"
        steps = [(streams, found.step_ms(streams)) for streams in _PLANNED if streams <= found.slots]
        yield "", "step: " + ", ".join(f"{streams}: {ms:.1f} ms" for streams, ms in steps)


def _section(title: str, lines: Iterable[tuple[str, str]]) -> None:
    sys.stdout.write(f"{title}\n")
    for name, value in lines:
        sys.stdout.write(f"  {name:<14} {value}\n")
        sys.stdout.flush()
    sys.stdout.write("\n")


def _versions() -> Iterator[tuple[str, str]]:
    from importlib import metadata

    from slipstream import __version__

    yield "slipstream", __version__
    yield "python", f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    for package, extra in _PACKAGES.items():
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            remedy = f'pip install "slipstream-stt[{extra}]"' if extra else "pip install slipstream-stt"
            yield package, f"not installed: {remedy}"


def _machine() -> Iterator[tuple[str, str]]:
    from huggingface_hub.constants import HF_HUB_CACHE

    yield "cores", str(os.cpu_count())
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        yield "memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    yield "CUDA", _cuda()
    yield "microphones", _microphones()
    yield "model cache", HF_HUB_CACHE
    existing = HF_HUB_CACHE
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    yield "free space", f"{shutil.disk_usage(existing).free / 2**30:.1f} GiB"


def _cuda() -> str:
    try:
        import torch
    except ImportError:
        return "needs torch"
    if not torch.cuda.is_available():
        return "no device"
    names = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in names)


def _microphones() -> str:
    from slipstream.audio import input_devices

    try:
        return ", ".join(device.name for device in input_devices()) or "none"
    except SlipstreamError as error:
        return str(error)


def _real_time(load: Callable[[int], Runner]) -> Iterator[tuple[str, str]]:
    """Measure more and more slots, until a step takes longer than a frame."""
    for slots in _SLOTS:
        runner = load(slots)
        took, budget = milliseconds_per_frame(runner), 1000 / runner.frame_rate
        holds = "in real time" if took < budget else "too slow"
        yield f"{slots} live", f"{took:.1f} ms per {budget:.0f} ms of audio: {holds}, {budget / took:.1f}x"
        if took >= budget:
            return
