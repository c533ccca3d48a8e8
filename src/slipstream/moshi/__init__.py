"""Kyutai's published Python calls for speech to text, on Slipstream's models.

A script written for `moshi.models` runs after changing only its imports. Here, and only here, the first step sees the
initial tokens instead of the first frame, and streaming state lives in an object that is put into a mode.
"""

from slipstream.moshi import client_utils, conditioners, models
from slipstream.moshi.models import LMGen, LMModel, MimiModel, get_mimi, get_moshi_lm, loaders

__all__ = [
    "LMGen",
    "LMModel",
    "MimiModel",
    "client_utils",
    "conditioners",
    "get_mimi",
    "get_moshi_lm",
    "loaders",
    "models",
]
