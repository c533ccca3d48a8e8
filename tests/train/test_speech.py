"""The built-in model aligns by its name."""

from __future__ import annotations

import ctypes.util
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

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


@pytest.mark.skipif(ctypes.util.find_library("espeak-ng") is None, reason="espeak-ng is not installed")
def test_an_aligner_finds_nearly_the_same_times_in_bfloat16() -> None:
    aligner = load_aligner("tiny")
    starts, fits = [], []
    for aligner.dtype in (torch.float32, torch.bfloat16):
        aligned, fit = aligner.align(Recording(SAMPLE, SAID, lang="en"))
        starts.append(np.array([word.start for word in aligned.words]))
        fits.append(fit)
    assert fits[0] != fits[1] == pytest.approx(fits[0], abs=0.05)
    assert np.abs(starts[0] - starts[1]).max() <= 0.06
