"""Where the ONNX backend runs."""

from __future__ import annotations

from collections.abc import Sequence


def find_devices() -> Sequence[str]:
    """List the devices of this machine: always the CPU."""
    return ("cpu",)
