"""State as a value: nothing that is made from a state changes it."""

from __future__ import annotations

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core", reason="MLX is not installed: pip install 'slipstream-stt[mlx]'")

from slipstream.backends.mlx.state import Ring, commit, read_slot, write_slots  # noqa: E402


def ring(batch: int = 3, columns: int = 4) -> Ring:
    return Ring(mx.random.normal((batch, 2, columns, 5)), mx.random.normal((batch, 2, columns, 5)))


def test_commit_takes_tails_of_active_slots_only_and_rings_whole():
    old, new = ring(), ring()
    state = {"tail": mx.zeros((3, 2)), "parts": [mx.zeros(3), old]}
    update = {"tail": mx.ones((3, 2)), "parts": [mx.ones(3), new]}
    committed = commit(state, update, mx.array([True, False, True]))
    assert committed["tail"][:, 0].tolist() == [1, 0, 1]
    assert committed["parts"][0].tolist() == [1, 0, 1]
    assert mx.array_equal(committed["parts"][1].k, new.k)
    assert not state["tail"].any()


def test_unset_tails_of_slots_that_pause_stay_unset():
    state, update = mx.full((2, 1), np.nan), mx.ones((2, 1))
    assert mx.isnan(commit(state, update, mx.array([True, False])))[:, 0].tolist() == [False, True]


def test_ring_write_puts_each_key_into_its_column_and_leaves_the_old_ring():
    empty = Ring.empty(2, 1, 4, 1, mx.float32)
    keys = mx.arange(4.0).reshape(2, 1, 2, 1)
    written = empty.write(mx.array([[3, 0], [1, 2]]), keys, keys + 10)
    assert written.k[..., 0].tolist() == [[[1, 0, 0, 0]], [[0, 2, 3, 0]]]
    assert written.v[..., 0].tolist() == [[[11, 0, 0, 10]], [[0, 12, 13, 0]]]
    assert not empty.k.any()


def test_a_slot_read_can_be_written_into_others_and_changes_no_more():
    state = {"tail": mx.random.normal((3, 2)), "rings": [ring()]}
    saved = read_slot(state, 1)
    state = write_slots(state, [0, 2], saved)
    for slot in (0, 2):
        assert mx.array_equal(state["tail"][slot], saved["tail"][0])
        assert mx.array_equal(state["rings"][0].v[slot], saved["rings"][0].v[0])
    columns, zeros = mx.zeros((3, 4), mx.int32), mx.zeros((3, 2, 4, 5))
    cleared = state["rings"][0].write(columns, zeros, zeros)
    mx.eval(cleared)
    assert (saved["rings"][0].k[0, :, 0] != 0).all()


def test_a_ring_saved_with_fewer_columns_leaves_the_others():
    state, saved = [ring()], read_slot([ring(columns=4)], 2, columns=1)
    assert saved[0].k.shape == (1, 2, 1, 5)
    written = write_slots(state, [1], saved)[0]
    assert mx.array_equal(written.k[1, :, :1], saved[0].k[0])
    assert mx.array_equal(written.k[1, :, 1:], state[0].k[1, :, 1:])
    assert mx.array_equal(written.k[::2], state[0].k[::2])


def test_states_of_different_models_do_not_mix():
    with pytest.raises(ValueError, match="made by the same model"):
        write_slots({"tail": mx.zeros((2, 2))}, [0], {"other": mx.zeros((1, 2))})
