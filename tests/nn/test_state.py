"""State as a value: saved, moved, committed under a mask."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from slipstream.nn.ring import Ring, RingFormat, dequantise, hadamard, quantise  # noqa: E402
from slipstream.nn.state import (  # noqa: E402
    Savepoints,
    commit,
    first_slots,
    read_slot,
    read_slots,
    reset_rows,
    write_slots,
)

CPU = torch.device("cpu")


def ring(batch: int = 3, columns: int = 4, **form: object) -> Ring:
    """Random keys and values of two layers."""
    made = Ring.empty((2, batch, 2, columns, 16), device=CPU, dtype=torch.float32, format=RingFormat(**form))
    for layer in (made.layer(0), made.layer(1)):
        every = torch.arange(made.capacity).expand(batch, -1)
        layer.write(every, *torch.randn(2, batch, 2, made.capacity, 16))
    return made


def equal(left: Ring, right: Ring) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left.tensors, right.tensors, strict=True))


both_kinds = pytest.mark.parametrize("form", [{}, {"int8": True}], ids=["float32", "int8"])


def test_commit_copies_tails_of_active_slots_only_and_keeps_the_buffers():
    state = {"tail": torch.zeros(3, 2), "parts": [torch.zeros(3), ring()]}
    buffer = state["tail"]
    commit(state, {"tail": torch.ones(3, 2), "parts": [torch.ones(3), ring()]}, torch.tensor([True, False, True]))
    assert state["tail"] is buffer
    assert buffer[:, 0].tolist() == [1, 0, 1]
    assert state["parts"][0].tolist() == [1, 0, 1]


def test_ring_write_puts_each_key_into_its_column():
    empty = Ring.empty((1, 2, 1, 4, 1), device=CPU, dtype=torch.float32)
    keys = torch.arange(4.0).view(2, 1, 2, 1)
    empty.layer(0).write(torch.tensor([[3, 0], [1, 2]]), keys, keys + 10)
    assert empty.k[0, ..., 0].tolist() == [[[1, 0, 0, 0]], [[0, 2, 3, 0]]]
    assert empty.v[0, ..., 0].tolist() == [[[11, 0, 0, 10]], [[0, 12, 13, 0]]]


def test_the_capacity_is_aligned():
    assert [RingFormat(align=64).capacity(columns) for columns in (1, 64, 251, 750)] == [64, 64, 256, 768]
    assert ring(columns=5, align=4).capacity == 8


@both_kinds
def test_a_slot_read_is_a_copy_and_can_be_written_into_another(form: dict[str, bool]):
    state = {"tail": torch.randn(3, 2), "ring": ring(**form)}
    saved = read_slot(state, 1)
    expected = state["tail"][1].clone(), [buffer[:, 1].clone() for buffer in state["ring"].tensors]
    for tensor in (state["tail"], *state["ring"].tensors):
        tensor.zero_()
    write_slots(state, torch.tensor([0, 2]), saved)
    for slot in (0, 2):
        torch.testing.assert_close(state["tail"][slot], expected[0])
        torch.testing.assert_close([buffer[:, slot] for buffer in state["ring"].tensors], expected[1])
    assert not state["tail"][1].any()


def test_states_of_different_models_or_formats_do_not_mix():
    state = {"tail": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="made by the same model"):
        write_slots(state, torch.tensor([0]), {"other": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match="int8=True"):
        write_slots(ring(), torch.tensor([0]), ring(1, int8=True))


def test_the_first_slots_are_the_same_memory():
    state = {"tail": torch.zeros(3, 2), "ring": ring()}
    few = first_slots(state, torch.arange(2))
    few["tail"].fill_(1)
    few["ring"].k.fill_(7)
    assert state["tail"][:, 0].tolist() == [1, 1, 0]
    assert (state["ring"].k[:, :2] == 7).all()
    assert not (state["ring"].k[:, 2] == 7).any()


def test_several_slots_are_read_as_copies_and_each_written_into_its_own():
    state = {"tail": torch.randn(4, 2), "ring": ring(4)}
    slots = torch.tensor([3, 1])
    saved = read_slots(state, slots)
    expected = state["tail"].clone(), state["ring"].v.clone()
    state["tail"][slots] = 0
    state["ring"].v[:, slots] = 0
    write_slots(state, slots, saved)
    torch.testing.assert_close(state["tail"], expected[0])
    torch.testing.assert_close(state["ring"].v, expected[1])


def test_rings_that_the_kernels_read_stay_where_they_are():
    state = {"tail": torch.randn(4, 2), "ring": ring(4, kernels=True)}
    batch = read_slots(state, torch.tensor([3, 1]))
    assert batch["ring"].k is state["ring"].k
    assert batch["ring"].slots_R.tolist() == [3, 1]
    write_slots(state, torch.tensor([3, 1]), batch)
    assert batch["ring"].k is state["ring"].k


def test_a_ring_saved_with_fewer_columns_leaves_the_others_alone():
    state = [ring()]
    expected = state[0].k.clone()
    write_slots(state, torch.tensor([0, 2]), [ring(1).map(lambda buffer: torch.ones_like(buffer[:, :, :, :1]))])
    expected[:, [0, 2], :, :1] = 1
    torch.testing.assert_close(state[0].k, expected)


@pytest.mark.parametrize("kernels", [False, True])
@both_kinds
def test_rows_are_reset_by_a_mask(form: dict[str, bool], kernels: bool):
    """The same as writing the fresh state into these slots, in a batch of the slots 2 and 0."""
    fresh = {"tail": torch.ones(1, 2), "ring": read_slot(ring(1, **form), 0, steps=1)}
    state = {"tail": torch.zeros(3, 2), "ring": ring(kernels=kernels, **form)}
    expected = {"tail": torch.tensor([[1.0, 1], [0, 0], [0, 0]]), "ring": state["ring"].map(torch.clone)}
    write_slots(expected["ring"], torch.tensor([0]), fresh["ring"])
    rows = torch.tensor([2, 0])
    batch = read_slots(state, rows)
    reset_rows(batch, fresh, torch.tensor([False, True]))
    write_slots(state, rows, batch)
    torch.testing.assert_close(state["tail"], expected["tail"])
    assert equal(state["ring"], expected["ring"])


@both_kinds
def test_a_savepoint_holds_the_columns_of_its_steps_and_frees_its_entry(form: dict[str, bool]):
    state = {"position": torch.tensor([0, 6, 3]), "ring": ring(columns=4, **form)}
    before = {"position": state["position"].clone(), "ring": state["ring"].map(torch.clone)}
    pool = Savepoints(state, entries=1, steps=3)
    assert pool._pool["ring"].capacity == 3
    saved = pool.save(state, 1)
    assert pool.save(state, 2) is None
    for position in (6, 7, 8):  # columns 2, 3 and 0; another slot steps, too
        columns = torch.full((3, 1), position % 4)
        for layer in (0, 1):
            state["ring"].layer(layer).write(columns, *torch.randn(2, 3, 2, 1, 16))
    state["position"] += 3
    other = [buffer[:, 0].clone() for buffer in state["ring"].tensors]
    pool.restore(state, saved)
    for buffer, expected in zip(state["ring"].tensors, before["ring"].tensors, strict=True):
        assert torch.equal(buffer[:, 1], expected[:, 1])
    assert state["position"].tolist() == [3, 6, 6]
    torch.testing.assert_close([buffer[:, 0] for buffer in state["ring"].tensors], other)
    del saved
    assert pool.save(state, 2) is not None


def test_numbers_are_rounded_to_a_127th_of_the_largest():
    x = torch.tensor([[127.0, 0.5, -0.5, 1.5, -127.0], [0, 0, 0, 0, 0], [0.127, -0.0634, 0, 0, 0]])
    codes, unit = quantise(x)
    assert codes.tolist() == [[127, 1, 0, 2, -127], [0] * 5, [127, -63, 0, 0, 0]]
    torch.testing.assert_close(unit, torch.tensor([1.0, 1.0, 0.001]))
    error = (dequantise(codes, unit, torch.float32) - x).abs().amax(dim=1)
    assert (error <= unit / 2 * 1.01).all()


@pytest.mark.parametrize("dim", [16, 48, 128])
def test_a_hadamard_transform_keeps_products_and_spreads_outliers(dim: int):
    q, k = torch.randn(2, 50, dim, dtype=torch.float64).float()
    torch.testing.assert_close((hadamard(q) * hadamard(k)).sum(-1), (q * k).sum(-1), atol=1e-4, rtol=1e-4)
    k[:, 3] = 50.0

    def error(x: torch.Tensor) -> float:
        return float((dequantise(*quantise(x), torch.float32) - x).norm() / x.norm())

    assert error(hadamard(k)) < error(k)
