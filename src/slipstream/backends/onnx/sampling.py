"""Pick a text token from the LM's logits, on the host. Shapes: B slots, V vocabulary."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slipstream.arrays import FloatArray, IntArray
from slipstream.model.config import SamplingConfig
from slipstream.model.runner import CANDIDATES, Candidates, Steering


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
    return logprobs(logits_BV, token_B[:, None])[:, 0]


def steered(logits_BV: FloatArray, steering: Steering) -> FloatArray:
    """Add the biases of the first B rows of `steering`, to a copy if there are any."""
    changed_B = (steering.bias_BN[: len(logits_BV)] != 0).any(axis=-1)
    if not changed_B.any():
        return logits_BV
    logits_BV = logits_BV.copy()
    for slot in np.flatnonzero(changed_B):
        np.add.at(logits_BV[slot], steering.id_BN[slot], steering.bias_BN[slot])
    return logits_BV


def candidates(logits_BV: FloatArray, scores_BV: FloatArray) -> Candidates:
    """The tokens with the highest `scores_BV` (the logits with biases), the best first, and the best without biases."""
    some_BK = np.argpartition(-scores_BV, CANDIDATES - 1, axis=-1)[:, :CANDIDATES]
    order_BK = np.argsort(-np.take_along_axis(scores_BV, some_BK, axis=-1), axis=-1, kind="stable")
    token_BK: IntArray = np.take_along_axis(some_BK, order_BK, axis=-1)
    plain_B = _argmax(logits_BV)
    return Candidates(token_BK, logprobs(logits_BV, token_BK), plain_B, logprob(logits_BV, plain_B))


def logprobs(logits_BV: FloatArray, token_BK: IntArray) -> FloatArray:
    """Log-probabilities `[B, K]` of some tokens of each slot under the softmax of its logits."""
    largest_B1 = logits_BV.max(axis=-1, keepdims=True)
    total_B1 = largest_B1 + np.log(np.exp(logits_BV - largest_B1).sum(axis=-1, keepdims=True))
    logprob_BK: FloatArray = np.take_along_axis(logits_BV, token_BK, axis=-1) - total_B1
    return logprob_BK


def _argmax(scores_BV: npt.NDArray[np.floating]) -> IntArray:
    token_B: IntArray = scores_BV.argmax(axis=-1)
    return token_B
