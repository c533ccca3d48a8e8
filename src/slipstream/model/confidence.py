"""What the probabilities of a model mean: the share of words that are right among those with the same probability."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


class Curve(_Config):
    """A probability as a function of a surprisal, by straight lines between points; constant outside of them.

    Attributes:
        nats: Surprisals, increasing.
        probability: The probability at each.
    """

    # Not strict, since a table within a file's table has lists for tuples.
    nats: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1, strict=False)]
    probability: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(strict=False)]

    @model_validator(mode="after")
    def _points_are_in_order(self) -> Curve:
        if len(self.nats) != len(self.probability):
            raise ValueError(f"{len(self.nats)} nats and {len(self.probability)} probabilities: expected as many")
        if any(low >= high for low, high in itertools.pairwise(self.nats)):
            raise ValueError("nats must increase")
        return self

    def at(self, nats: float) -> float:
        """Return the probability at a surprisal.

        Example:
            >>> Curve(nats=(0.0, 2.0), probability=(0.9, 0.1)).at(1.0)
            0.5
        """
        above = bisect.bisect_right(self.nats, nats)
        if above in (0, len(self.nats)):
            return self.probability[min(above, len(self.nats) - 1)]
        (x0, x1), (y0, y1) = self.nats[above - 1 : above + 1], self.probability[above - 1 : above + 1]
        return y0 + (y1 - y0) * (nats - x0) / (x1 - x0)


class Calibration(_Config):
    """What the probabilities of a model mean, measured on recordings that it was not trained on.

    Attributes:
        word: The probability that a word is right, by the sum of its tokens' surprisals.
        omission: The probability that words are missing before a word, by the sum of the surprisals of the pads before
            it, without the last of them.
    """

    word: Curve
    omission: Curve | None = None


LEAST_PROBABILITY = 1e-4
"""Probabilities of pause heads count as at least this far from 0 and 1."""


class EndingCurve(_Config):
    """The probability that the speaker has finished, by the pause heads and the silence so far: a logistic regression.

    Attributes:
        bias: The log odds if every head has 0.5, without silence.
        heads: For each pause head, the change of the log odds with those of the head.
        silence: The change of the log odds with silence of at least `silence_seconds`; in proportion for a shorter one.
        silence_seconds: A longer silence changes no more.
    """

    bias: float
    heads: Annotated[tuple[float, ...], Field(min_length=1, strict=False)]
    silence: float
    silence_seconds: Annotated[float, Field(gt=0)]

    def at(self, pause_H: Sequence[float], silence: float) -> float:
        """Return the probability for the pause heads' probabilities `[H]`, after `silence` seconds of silence.

        A frame is silent if it has no voice, or is much quieter than the loudest of the last seconds.

        Example:
            >>> EndingCurve(bias=0.0, heads=(1.0,), silence=2.0, silence_seconds=0.4).at([0.5], 0.0)
            0.5
        """
        odds = self.bias + self.silence * min(1.0, silence / self.silence_seconds)
        for weight, pause in zip(self.heads, pause_H, strict=True):
            pause = min(max(pause, LEAST_PROBABILITY), 1 - LEAST_PROBABILITY)
            odds += weight * math.log(pause / (1 - pause))
        return 1 / (1 + math.exp(-odds)) if odds > 0 else 1 - 1 / (1 + math.exp(odds))
