"""State as a value: saved, moved, committed under a mask."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from slipstream.backends.torch.state import Ring, commit, first_slots, read_slot, read_slots, write_slots  # noqa: E402


def ring(batch: int = 3) -> Ring:
    return Ring(torch.randn(batch, 2, 4, 5), torch.randn(batch, 2, 4, 5))


def test_commit_copies_tails_of_active_slots_only_and_keeps_the_buffers():
    state = {"tail": torch.zeros(3, 2), "parts": [torch.zeros(3), ring()]}
    buffer = state["tail"]
    commit(state, {"tail": torch.ones(3, 2), "parts": [torch.ones(3), ring()]}, torch.tensor([True, False, True]))
    assert state["tail"] is buffer
    assert buffer[:, 0].tolist() == [1, 0, 1]
    assert state["parts"][0].tolist() == [1, 0, 1]


def test_ring_write_puts_each_key_into_its_column():
    empty = Ring.empty(2, 1, 4, 1, device=torch.device("cpu"), dtype=torch.float32)
    keys = torch.arange(4.0).view(2, 1, 2, 1)
    empty.write(torch.tensor([[3, 0], [1, 2]]), keys, keys + 10)
    assert empty.k[..., 0].tolist() == [[[1, 0, 0, 0]], [[0, 2, 3, 0]]]
    assert empty.v[..., 0].tolist() == [[[11, 0, 0, 10]], [[0, 12, 13, 0]]]


def test_a_slot_read_is_a_copy_and_can_be_written_into_another():
    state = {"tail": torch.randn(3, 2), "rings": [ring()]}
    saved = read_slot(state, 1)
    expected = state["tail"][1].clone(), state["rings"][0].k[1].clone()
    state["tail"].zero_()
    state["rings"][0].k.zero_()
    write_slots(state, torch.tensor([0, 2]), saved)
    for slot in (0, 2):
        torch.testing.assert_close(state["tail"][slot], expected[0])
        torch.testing.assert_close(state["rings"][0].k[slot], expected[1])
    assert not state["tail"][1].any()


def test_states_of_different_models_do_not_mix():
    state = {"tail": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="made by the same model"):
        write_slots(state, torch.tensor([0]), {"other": torch.zeros(1, 2)})


def test_the_first_slots_are_the_same_memory():
    state = {"tail": torch.zeros(3, 2), "rings": [ring()]}
    few = first_slots(state, 2)
    few["tail"].fill_(1)
    few["rings"][0].k.fill_(7)
    assert state["tail"][:, 0].tolist() == [1, 1, 0]
    assert (state["rings"][0].k[:2] == 7).all()
    assert not (state["rings"][0].k[2] == 7).any()


def test_several_slots_are_read_as_copies_and_each_written_into_its_own():
    state = {"tail": torch.randn(4, 2), "rings": [ring(4)]}
    slots = torch.tensor([3, 1])
    saved = read_slots(state, slots)
    expected = state["tail"].clone(), state["rings"][0].v.clone()
    state["tail"][slots] = 0
    state["rings"][0].v[slots] = 0
    write_slots(state, slots, saved)
    torch.testing.assert_close(state["tail"], expected[0])
    torch.testing.assert_close(state["rings"][0].v, expected[1])


def test_a_ring_saved_with_fewer_columns_leaves_the_others_alone():
    state = [ring()]
    expected = state[0].k.clone()
    write_slots(state, torch.tensor([0, 2]), [Ring(torch.ones(1, 2, 1, 5), torch.ones(1, 2, 1, 5))])
    expected[[0, 2], :, :1] = 1
    torch.testing.assert_close(state[0].k, expected)
