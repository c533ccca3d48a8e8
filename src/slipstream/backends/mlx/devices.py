"""Where the MLX backend runs."""

from __future__ import annotations

import platform
from collections.abc import Sequence


def find_devices() -> Sequence[str]:
    """List the devices of this machine: the GPU of a Mac with Apple silicon, elsewhere the CPU, to test."""
    return ("gpu",) if is_apple_silicon() else ("cpu",)


def is_apple_silicon() -> bool:
    return platform.system() == "Darwin" and platform.machine() == "arm64"
