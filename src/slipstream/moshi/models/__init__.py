"""What Kyutai's scripts import from `moshi.models`."""

from slipstream.moshi.models import compression, lm, loaders
from slipstream.moshi.models.compression import MimiModel
from slipstream.moshi.models.lm import LMGen, LMModel
from slipstream.moshi.models.loaders import get_mimi, get_moshi_lm

__all__ = ["LMGen", "LMModel", "MimiModel", "compression", "get_mimi", "get_moshi_lm", "lm", "loaders"]
