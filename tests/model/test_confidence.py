"""Curves from the surprisal of a word to the probability that it is right."""

from __future__ import annotations

import pytest

from slipstream.model.confidence import Curve


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
