"""Pick a text token from the LM's logits, on the host. Shapes: B slots, V vocabulary."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slipstream.arrays import FloatArray, IntArray
from slipstream.model.config import SamplingConfig


def pick(logits_BV: FloatArray, sampling: SamplingConfig, random: np.random.Generator) -> IntArray:
    """Pick a token for each slot, `[B]`: the best at temperature 0, else a sample of the `top_k` best."""
    if sampling.temperature == 0:
        return _argmax(logits_BV)
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        least_B1 = np.partition(logits_BV, -sampling.top_k, axis=-1)[:, -sampling.top_k, None]
        logits_BV = np.where(logits_BV < least_B1, np.float32(-np.inf), logits_BV)
    # The largest of the scaled logits plus Gumbel noise falls on each token with its softmax probability.
    return _argmax(logits_BV / sampling.temperature + random.gumbel(size=logits_BV.shape))


def logprob(logits_BV: FloatArray, token_B: IntArray) -> FloatArray:
    """Log-probability `[B]` of each slot's token under the softmax of its logits."""
    largest_B1 = logits_BV.max(axis=-1, keepdims=True)
    total_B = largest_B1[:, 0] + np.log(np.exp(logits_BV - largest_B1).sum(axis=-1))
    logprob_B: FloatArray = np.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0] - total_B
    return logprob_B


def _argmax(scores_BV: npt.NDArray[np.floating]) -> IntArray:
    token_B: IntArray = scores_BV.argmax(axis=-1)
    return token_B
