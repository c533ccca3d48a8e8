"""Sentences spoken by Kokoro-82M in bfloat16 by OpenVINO: 1.8 times as fast as in float32 by ONNX Runtime.

    pip install openvino
    python recipes/tiny/kokoro_voices.py DATA/voices/kokoro.py speak MODEL data/fr.txt data/kokoro-more --language fr

The script's own arguments follow its path. Its documentation explains how to build the folder MODEL. A French sentence
is spoken by a blend of three voices, of which the French one has at most 65 %: the script's own blends sound like one
speaker.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

import numpy as np
import onnxruntime
import openvino

FRENCH = "ff_siwis"

_whole_session = onnxruntime.InferenceSession


class Session:
    """As much of an ONNX Runtime session as the script uses."""

    def __init__(self, path: str) -> None:
        options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "bf16"}
        self._model = openvino.Core().compile_model(path, "CPU", options)

    def run(self, _: None, inputs: dict[str, Any]) -> list[Any]:
        outputs = self._model(inputs)
        return [outputs[number] for number in range(len(self._model.outputs))]


def open_session(path: str, *args: Any, **kwargs: Any) -> Any:
    """OpenVINO for Kokoro's own graph, ONNX Runtime for all others."""
    return Session(path) if str(path).endswith("float.onnx") else _whole_session(path, *args, **kwargs)


def draw(voice: Any, rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """Return the name and the style of a blend of three voices, for a French sentence."""
    first, second = rng.choice([name for name in voice.styles if name != FRENCH], 2, replace=False)
    share, balance = rng.choice([0.0, 0.2, 0.35, 0.5, 0.65]), rng.random()
    others = balance * voice.styles[first] + (1 - balance) * voice.styles[second]
    return f"{FRENCH}*{share}+{first}*{balance:.2f}+{second}", share * voice.styles[FRENCH] + (1 - share) * others


def main() -> None:
    onnxruntime.InferenceSession = open_session
    sys.argv = sys.argv[1:]
    script = runpy.run_path(sys.argv[0], run_name="kokoro")
    own = script["Voice"].draw
    script["Voice"].draw = lambda voice, rng: draw(voice, rng) if voice.language == "fr" else own(voice, rng)
    script["main"]()


if __name__ == "__main__":
    main()
