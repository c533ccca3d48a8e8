"""The built-in model aligns by its name."""

from __future__ import annotations

import ctypes.util
from itertools import pairwise
from pathlib import Path

import pytest

from slipstream.data.manifest import Recording
from slipstream.train.speech import load_aligner

SAMPLE = Path(__file__).parents[2] / "examples" / "sample.opus"
SAID = (
    "good morning and thank you for calling the train to london leaves at seven thirty from platform four "
    "would you like to book a seat by the window"
)


@pytest.mark.skipif(ctypes.util.find_library("espeak-ng") is None, reason="espeak-ng is not installed")
def test_the_built_in_model_aligns() -> None:
    aligner = load_aligner("tiny")
    aligned, fit = aligner.align(Recording(SAMPLE, SAID, lang="en"))
    assert [word.text for word in aligned.words] == SAID.split()
    assert all(a.start < b.start for a, b in pairwise(aligned.words))
    _, worse = aligner.align(Recording(SAMPLE, " ".join(reversed(SAID.split())), lang="en"))
    assert fit > worse + 0.5
