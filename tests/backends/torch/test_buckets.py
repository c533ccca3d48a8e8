"""Buckets: which rows a step runs, and the laws of a Runner over batches of every size, gathered ones included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from tests.models import noise_and_tones, random_model, stt_config  # noqa: E402

from slipstream.backends.torch.buckets import GATHER_COST, Bucket, Buckets, default_sizes  # noqa: E402
from slipstream.backends.torch.runner import TorchRunner  # noqa: E402
from slipstream.nn.build import build_codec, build_lm  # noqa: E402

SLOTS = 24
SIZES = (1, 2, 4, 8, SLOTS)  # of which 1, 2 and 4 can be gathered
FRAMES = 24  # the LM's ring wraps after 7 frames, the codec's after 6


def active(*slots: int, of: int = SLOTS) -> np.ndarray:
    return np.isin(np.arange(of), slots)


# ---------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("slots", "sizes"),
    [
        (1, (1,)),
        (4, (1, 4)),
        (8, (1, 8)),
        (100, (1, 8, 32, 64, 100)),
        (400, (1, 8, 32, 64, 128, 256, 384, 400)),
    ],
)
def test_sizes_end_with_all_slots(slots: int, sizes: tuple[int, ...]):
    assert default_sizes(slots) == sizes


@pytest.mark.parametrize("sizes", [(), (1, 2), (2, 1, 24), (0, 24), (1, 1, 24), (1, 25)])
def test_sizes_that_make_no_sense_are_refused(sizes: tuple[int, ...]):
    with pytest.raises(ValueError, match="expected ascending sizes"):
        Buckets(SLOTS, sizes)


def test_active_slots_at_the_front_are_run_in_place():
    buckets = Buckets(SLOTS, SIZES)
    assert buckets.choose(active(0)) == (Bucket(1), slice(0, 1))
    assert buckets.choose(active(1)) == (Bucket(2), slice(0, 2))
    assert buckets.choose(active(0, 1, 2, 3, 4)) == (Bucket(8), slice(0, 8))
    assert buckets.choose(active(*range(9))) == (Bucket(SLOTS), slice(0, SLOTS))


def test_few_slots_at_the_back_are_gathered_with_idle_ones_next_to_them():
    bucket, slots = Buckets(SLOTS, SIZES).choose(active(5, 17, 23))
    assert bucket == Bucket(4, gathered=True)
    assert slots.tolist() == [5, 17, 23, 0]


def test_slots_are_gathered_only_where_that_moves_less_than_running_them_in_place():
    buckets = Buckets(SLOTS, SIZES)
    assert buckets.choose(active(3))[0] == Bucket(4)  # gathering one row costs as much as five
    assert buckets.choose(active(7))[0] == Bucket(1, gathered=True)
    assert buckets.choose(active(0, 1, 2, 3, 23))[0] == Bucket(SLOTS)
    assert all(bucket.size * GATHER_COST < SLOTS for bucket in buckets.all if bucket.gathered)


@given(st.integers(1, 600), st.data())
def test_every_active_slot_has_one_row_and_no_slot_two(slots: int, data: st.DataObject):
    buckets = Buckets(slots)
    chosen = data.draw(st.sets(st.integers(0, slots - 1), max_size=40))
    bucket, rows = buckets.choose(active(*chosen, of=slots))
    in_rows = np.arange(slots)[rows].tolist()
    assert bucket in buckets.all
    assert len(in_rows) == len(set(in_rows)) == bucket.size
    assert chosen <= set(in_rows)


# ------------------------------------------------------------------------------------------------------------ the laws


@pytest.fixture(scope="module")
def runners() -> tuple[TorchRunner, TorchRunner]:
    """Many slots in buckets, and one alone, over the same modules."""
    config = stt_config()
    lm_weights, codec_weights = random_model(config)
    codec, lm = build_codec(config.codec, codec_weights), build_lm(config.lm, lm_weights)
    return TorchRunner(config, codec, lm, slots=SLOTS, buckets=SIZES), TorchRunner(config, codec, lm)


def frames(seed: int, count: int = FRAMES) -> np.ndarray:
    return noise_and_tones(count * 0.08, seed=seed).reshape(count, 1920)


def alone(runner: TorchRunner, frames_TS: np.ndarray) -> list[tuple]:
    runner.reset([0])
    outputs = [runner.step(frame[None], np.array([True])) for frame in frames_TS]
    return [(int(out.token_B[0]), float(out.logprob_B[0]), *out.pause_BH[0]) for out in outputs]


@pytest.mark.parametrize("seed", range(4))
def test_a_slot_has_the_same_results_in_every_bucket(runners: tuple[TorchRunner, TorchRunner], seed: int):
    """Any few slots at a time, reset at random: the results of each are those of its audio since its reset alone."""
    many, single = runners
    many.reset(range(SLOTS))
    rng = np.random.default_rng(seed)
    watched = rng.choice(SLOTS, size=6, replace=False)
    source = {slot: frames(slot) for slot in watched}
    heard: dict[int, list[np.ndarray]] = {slot: [] for slot in watched}
    said: dict[int, list[tuple]] = {slot: [] for slot in watched}
    used = set()
    for t in range(FRAMES):
        if rng.random() < 0.1:
            gone = rng.choice(watched)
            many.reset([gone])
            heard[gone], said[gone] = [], []
        now = rng.choice(watched, size=rng.integers(1, 7), replace=False)
        pcm = np.full((SLOTS, 1920), np.nan, np.float32)
        for slot in now:
            pcm[slot] = source[slot][t]
        used.add(many._buckets.choose(active(*now))[0])
        out = many.step(pcm, active(*now))
        for slot in now:
            heard[slot].append(source[slot][t])
            said[slot].append((int(out.token_B[slot]), float(out.logprob_B[slot]), *out.pause_BH[slot]))
    assert {bucket.gathered for bucket in used} == {False, True}
    for slot in watched:
        if heard[slot]:
            np.testing.assert_allclose(said[slot], alone(single, np.stack(heard[slot])), atol=2e-4)


@pytest.mark.parametrize(
    ("stepped", "bucket"),
    [
        (range(1, SLOTS), Bucket(SLOTS)),
        ((1,), Bucket(2)),
        ((23,), Bucket(1, gathered=True)),  # slot 0 is not in the batch
        ((5, 17, 23), Bucket(4, gathered=True)),  # slot 0 fills the fourth row
    ],
)
def test_a_step_changes_no_bit_of_a_slot_that_rests(
    runners: tuple[TorchRunner, TorchRunner], stepped: tuple[int, ...], bucket: Bucket
):
    """The results of slot 0 are those without any step while it was paused, its row in the batch or not."""
    many, _ = runners
    assert many._buckets.choose(active(*stepped))[0] == bucket
    said = []
    for disturb in (False, True):
        many.reset(range(SLOTS))
        outputs = []
        for frame, other in zip(frames(1), frames(2), strict=True):
            if disturb:
                many.step(np.stack([other] * SLOTS), active(*stepped))
            out = many.step(np.stack([frame] * SLOTS), active(0))
            outputs.append((out.token_B[0], out.logprob_B[0], *out.pause_BH[0]))
        said.append(outputs)
    assert said[0] == said[1]


def test_a_snapshot_moves_between_buckets(runners: tuple[TorchRunner, TorchRunner]):
    many, single = runners
    audio = frames(3)
    expected = alone(single, audio)
    many.reset(range(SLOTS))
    for frame in audio[:10]:
        many.step(np.stack([frame] * SLOTS), active(0))
    many.restore(23, many.snapshot(0))
    said = []
    for frame in audio[10:]:
        out = many.step(np.stack([frame] * SLOTS), active(23))
        said.append((int(out.token_B[23]), float(out.logprob_B[23]), *out.pause_BH[23]))
    np.testing.assert_allclose(said, expected[10:], atol=2e-4)


def test_resetting_no_slot_is_harmless(runners: tuple[TorchRunner, TorchRunner]):
    runners[0].reset([])
