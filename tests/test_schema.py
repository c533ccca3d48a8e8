"""Schemas: strict sections, and error messages with place, value and remedy."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field, model_validator

from slipstream.errors import ConfigError
from slipstream.schema import Count, LooseSection, PositiveNumber, Section, check_fixed, only, parse


class Layer(Section):
    ignored: ClassVar[frozenset[str]] = frozenset({"unused"})
    width: Count = Field(alias="d_model")
    rate: PositiveNumber = 1.0
    norm: Literal["rms"] = "rms"
    kind: Literal["a", "b"] = "a"
    epsilon: Annotated[float, only(1e-5)] = 1e-5

    @model_validator(mode="after")
    def _width_is_even(self) -> Layer:
        if self.width % 2:
            raise ValueError(f"d_model={self.width} must be even")
        return self


class File(Section):
    layers: dict[str, Layer]
    sizes: list[Count] = Field([])


class Loose(LooseSection):
    size: Count = 1


def file(**layer: Any) -> dict[str, Any]:
    return {"layers": {"first": {"d_model": 4, **layer}}}


def test_null_is_absent_and_ignored_keys_have_any_value() -> None:
    parsed = parse(File, file(rate=None, unused=object), "the file")
    assert parsed == File(layers={"first": Layer(d_model=4)})
    assert parse(Loose, {"size": 3, "other": 1}, "the file").size == 3


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "the file lacks layers"),
        (file(d_model=None), "p.layers.first lacks d_model"),
        (file(d_mdel=4), "unknown key 'd_mdel' in p.layers.first; did you mean 'd_model'?"),
        (file(unusd=4), "unknown key 'unusd' in p.layers.first; did you mean 'unused'?"),
        ({**file(), "layer": 1}, "unknown key 'layer' in the file; did you mean 'layers'?"),
        ({**file(), "xyz": 1}, "unknown key 'xyz' in the file; known keys: layers, sizes"),
        (file(d_model=4.0), "p.layers.first: d_model must be a whole number above 0, not 4.0"),
        (file(d_model=True), "p.layers.first: d_model must be a whole number above 0, not True"),
        (file(rate=float("nan")), "p.layers.first: rate must be a number above 0, not nan"),
        (file(d_model=3), "p.layers.first: d_model=3 must be even"),
        (file(norm="layer"), "p.layers.first.norm='layer' cannot be run here: only 'rms' is supported"),
        (file(kind="c"), "p.layers.first.kind='c' is not supported: expected 'a' or 'b'"),
        (file(epsilon=1e-6), "p.layers.first.epsilon=1e-06 cannot be run here: only 1e-05 is supported"),
        ({**file(), "sizes": [1, 0]}, "p.sizes.1 must be a whole number above 0, not 0"),
        ({**file(), "sizes": 3}, "the file: sizes must be a list, not 3"),
    ],
)
def test_a_problem_is_described_with_place_value_and_remedy(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(File, raw, "the file", "p.")
    assert str(error.value) == message


def test_every_problem_is_in_one_error() -> None:
    with pytest.raises(ConfigError) as error:
        parse(File, {**file(d_model=0, norm="x"), "xyz": 1}, "the file")
    assert str(error.value).count("; ") >= 2
    assert all(part in str(error.value) for part in ("d_model must be", "norm='x'", "unknown key 'xyz'"))


def test_a_fixed_field_names_the_supported_value() -> None:
    check_fixed(Layer(d_model=4), {"width": 4}, "layer")
    with pytest.raises(ConfigError, match=r"layer\.width=4 cannot be run here: only 6 is supported, the width"):
        check_fixed(Layer(d_model=4), {"width": 6}, "layer", ", the width")
