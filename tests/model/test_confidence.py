"""Curves from the surprisal of a word to the probability that it is right."""

from __future__ import annotations

import math

import pytest

from slipstream.model.confidence import Curve, EndingCurve


def test_a_curve_has_straight_lines_between_its_points_and_is_constant_outside() -> None:
    curve = Curve(nats=(1.0, 2.0, 4.0), probability=(0.8, 0.4, 0.0))
    assert [curve.at(nats) for nats in (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 9.0)] == pytest.approx(
        [0.8, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0]
    )


@pytest.mark.parametrize("points", [((), ()), ((0.0, 1.0), (0.5,)), ((1.0, 1.0), (0.5, 0.5)), ((0.0,), (1.5,))])
def test_a_curve_needs_increasing_points_each_with_a_probability(
    points: tuple[tuple[float, ...], tuple[float, ...]],
) -> None:
    with pytest.raises(ValueError, match=r"nats|probability"):
        Curve(nats=points[0], probability=points[1])


def test_an_ending_curve_adds_the_log_odds_of_heads_and_silence() -> None:
    curve = EndingCurve(bias=-1.0, heads=(2.0, -1.0), silence=3.0, silence_seconds=0.5)
    assert curve.at((0.5, 0.5), 0.0) == pytest.approx(1 / (1 + math.e))
    assert curve.at((0.8, 0.5), 0.0) == pytest.approx(1 / (1 + math.exp(1 - 2 * math.log(4))))
    assert curve.at((0.5, 0.8), 0.25) == pytest.approx(1 / (1 + math.exp(1 + math.log(4) - 1.5)))
    assert curve.at((0.5, 0.5), 9.0) == curve.at((0.5, 0.5), 0.5)


def test_an_ending_curve_is_finite_for_certain_heads() -> None:
    curve = EndingCurve(bias=0.0, heads=(100.0,), silence=0.0, silence_seconds=0.5)
    assert curve.at((0.0,), 0.0) == pytest.approx(0, abs=1e-9)
    assert curve.at((1.0,), 0.0) == pytest.approx(1)
