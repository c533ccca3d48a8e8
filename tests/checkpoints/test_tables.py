"""The engine behind every layout: forms, placeholders, and one error for all that is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from slipstream.checkpoints.tables import Same, Stacked, Table, make_rules
from slipstream.errors import CheckpointError

SHAPES = {
    "emb.weight": (3, 4),
    "layers.0.norm.weight": (4,),
    "layers.0.linear.weight": (2, 4),
    "layers.1.norm.weight": (4,),
    "layers.1.linear.weight": (2, 4),
}


@pytest.fixture
def table() -> Table:
    rules = make_rules(
        SHAPES,
        {
            "emb.weight": Stacked("book.{k}", 3),
            "layers.{i}.norm.weight": Same("n{i}.alpha", lead=2),
            "layers.{i}.linear.{leaf}": Same("l{i}.{leaf}", trail=1),
        },
    )
    return Table(
        rules, constants={"flag": np.ones(1, np.float32)}, aliases=((r"^linear(\d)\.", r"l\1."),), skipped=r"other\."
    )


@pytest.fixture
def ours() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def test_names_and_shapes_of_the_layout(table: Table) -> None:
    assert table.shapes == {
        "book.0": (4,),
        "book.1": (4,),
        "book.2": (4,),
        "n0.alpha": (1, 1, 4),
        "n1.alpha": (1, 1, 4),
        "l0.weight": (2, 4, 1),
        "l1.weight": (2, 4, 1),
    }


def test_reading_undoes_writing(table: Table, ours: dict[str, np.ndarray]) -> None:
    theirs = table.write(ours)
    assert theirs.keys() == {*table.shapes, "flag"}
    assert {name: array.shape for name, array in theirs.items() if name != "flag"} == table.shapes
    back = table.read(theirs, "here")
    assert back.keys() == ours.keys()
    assert all(np.array_equal(back[name], ours[name]) for name in ours)


def test_other_spellings_constants_and_other_parts_are_accepted(table: Table, ours: dict[str, np.ndarray]) -> None:
    theirs = table.write(ours)
    theirs["linear1.weight"] = theirs.pop("l1.weight")
    theirs["other.thing"] = np.zeros(3)
    del theirs["flag"]
    assert np.array_equal(table.read(theirs, "here")["layers.1.linear.weight"], ours["layers.1.linear.weight"])


def test_one_error_lists_every_problem(table: Table, ours: dict[str, np.ndarray]) -> None:
    theirs = table.write(ours)
    del theirs["book.1"], theirs["n0.alpha"]
    theirs["surplus"] = np.zeros((2, 5))
    theirs["another"] = np.zeros(1)
    theirs["l0.weight"] = np.zeros((4, 2, 1), np.float32)
    theirs["l1.weight"] = np.full((2, 4, 1), np.nan, np.float32)
    theirs["n1.alpha"] = np.zeros((1, 1, 4), np.uint8)
    with pytest.raises(CheckpointError) as raised:
        table.read(theirs, "model.safetensors")
    assert str(raised.value).splitlines() == [
        "model.safetensors does not fit its configuration:",
        "  2 missing:",
        "    book.1 [4]",
        "    n0.alpha [1, 1, 4]",
        "  2 not known:",
        "    surplus [2, 5]",
        "    another [1]",
        "  1 of a wrong shape:",
        "    l0.weight [4, 2, 1], expected [2, 4, 1]",
        "  1 of a wrong type:",
        "    n1.alpha uint8, expected floating point",
        "  1 not finite (NaN or infinity):",
        "    l1.weight",
    ]


def test_a_tensor_without_a_place_is_named() -> None:
    with pytest.raises(CheckpointError, match="this layout has no place for b, c"):
        make_rules({"a": (1,), "b": (1,), "c": (1,)}, {"a": Same("x")})


def test_a_placeholder_is_one_part_of_a_name() -> None:
    with pytest.raises(CheckpointError, match=r"no place for a\.0\.1\.b"):
        make_rules({"a.0.1.b": (1,)}, {"a.{i}.b": Same("x.{i}")})
