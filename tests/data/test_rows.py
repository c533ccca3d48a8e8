"""What the model is taught: pause classes, rows that fit together, phones where they are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.train import world

from slipstream.data.packs import Clip, Pack, PackCodec, PackKind, write_pack
from slipstream.data.phones import UNKNOWN, PhoneInventory
from slipstream.data.rows import PAUSE_HORIZONS, crop, pause_labels
from slipstream.data.sampler import RowSampler, TokenSampler
from slipstream.errors import ConfigError
from slipstream.events import Word
from slipstream.model.config import PAD_ID
from slipstream.model.text import Tokenizer, WordDecoder


def test_class_zero_means_no_word_within_the_horizon() -> None:
    starts = [1.0, 2.6]
    labels = pause_labels(starts, 50, 12.5, 6)
    for t in range(50):
        wait = min((s - t / 12.5 for s in starts if s > t / 12.5), default=np.inf)
        for h, horizon in enumerate(PAUSE_HORIZONS):
            assert (labels[t, h] == 0) == (wait > horizon)
    assert labels[:, 3].max() <= 5


def test_sooner_words_have_smaller_classes() -> None:
    labels = pause_labels([3.0], 38, 12.5, 6)[:, 3]
    known = labels[labels > 0]
    assert list(known) == sorted(known, reverse=True)
    assert set(known) == {1, 2, 3, 4, 5}


@pytest.fixture
def mel_packs(tmp_path: Path) -> list[Pack]:
    kind = PackKind("mel", 8, 100.0, (-1.88,) * 8)
    timed = Clip(0, 0, "one two", "en", "a", "s", (("One,", 0.1, 0.4), ("two.", 0.5, 0.8)), (("w", 0.1), ("t", 0.5)))
    plain = Clip(0, 0, "three", "en", "b", "s", (), (), ("t", "w"))
    rows = np.random.default_rng(0).normal(size=(100, 8))
    sound = Clip(0, 0, "", "en", "sounds", "music")
    write_pack(tmp_path / "pack", kind, [(rows, timed), (rows, plain), (rows, sound)])
    return [Pack(tmp_path / "pack")]


def _sampler(packs: list[Pack], folder: Path, weights: dict[str, float]) -> RowSampler:
    tokenizer = Tokenizer(world.tokenizer(folder))
    options = world.rows(4.0, weights)
    return RowSampler(packs, PhoneInventory(["_", "t", "w"]), tokenizer, options)


@pytest.mark.parametrize(("foreign", "refused"), [(1, False), (6, True)])
def test_a_vocabulary_that_omits_many_letters_of_a_language_is_refused(
    tmp_path: Path, foreign: int, refused: bool
) -> None:
    texts = ["one two three"] * (20 - foreign) + ["\u0434\u0432\u0430"] * foreign
    clips = [Clip(0, 0, text, "ru", "a", "s", tuple((word, 0.1, 0.4) for word in text.split())) for text in texts]
    write_pack(
        tmp_path / "pack", PackKind("tokens", 4, 12.5, (0.0,) * 4), [(np.zeros((25, 4)), clip) for clip in clips]
    )
    arguments = [Pack(tmp_path / "pack")], Tokenizer(world.tokenizer(tmp_path)), world.rows(4.0, {"a": 1.0})
    if refused:
        with pytest.raises(
            ConfigError, match=r"data\.tokenizer: the vocabulary omits .* of the texts in 'ru', such as"
        ):
            TokenSampler(*arguments)
    else:
        TokenSampler(*arguments)


def test_a_row_has_the_targets_of_its_utterances(mel_packs: list[Pack], tmp_path: Path) -> None:
    sampler = _sampler(mel_packs, tmp_path, {"a": 1.0})
    batch = sampler.batch(0, 3)
    assert batch.mel_BFM.shape == (3, 400, 8)
    for b in range(3):
        decoder = WordDecoder(sampler.tokenizer, 6, partials=False)
        events = [event for token in batch.targets.text_BT[b, 1:] for event in decoder.push(int(token))]
        words = [event.text for event in [*events, *decoder.flush()] if isinstance(event, Word)]
        assert words[:2] == ["one", "two"]
        assert set(words) == {"one", "two"}
    assert batch.targets.mask_BT.all()
    assert set(batch.phones_BP.ravel()) == {0, 1, 2}
    assert len(batch.sequence) == batch.lengths_B.sum()


def test_words_without_times_have_no_text_loss(mel_packs: list[Pack], tmp_path: Path) -> None:
    batch = _sampler(mel_packs, tmp_path, {"b": 1.0}).batch(0, 2)
    assert (batch.targets.text_BT == PAD_ID).all()
    assert not batch.targets.mask_BT.all()
    assert (batch.targets.pause_BTH[~batch.targets.mask_BT] == UNKNOWN).all()
    assert (batch.phones_BP == UNKNOWN).any()
    assert set(batch.sequence) == {2, 3}


def test_sounds_have_no_text_targets(mel_packs: list[Pack], tmp_path: Path) -> None:
    batch = _sampler(mel_packs, tmp_path, {"sounds": 1.0}).batch(0, 2)
    assert (batch.targets.text_BT == PAD_ID).all()
    assert batch.targets.mask_BT.all()
    assert not batch.targets.pause_BTH.any()
    assert not batch.phones_BP.any()
    assert not batch.lengths_B.any()


def test_rows_depend_on_their_number_alone(mel_packs: list[Pack], tmp_path: Path) -> None:
    sampler = _sampler(mel_packs, tmp_path, {"a": 1.0, "b": 1.0})
    both, second = sampler.batch(4, 2), sampler.batch(5, 1)
    assert np.array_equal(both.mel_BFM[1], second.mel_BFM[0])
    assert np.array_equal(both.targets.text_BT[1], second.targets.text_BT[0])


def test_a_missing_dataset_is_named(mel_packs: list[Pack], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weights names c"):
        _sampler(mel_packs, tmp_path, {"a": 1.0, "c": 1.0})


def test_tokens_and_frames_are_not_confused(mel_packs: list[Pack], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="packs hold mel: this run reads tokens"):
        TokenSampler(mel_packs, Tokenizer(world.tokenizer(tmp_path)), world.rows(4.0, {"a": 1.0}))


SENTENCE = Clip(
    0,
    100,
    "one two three",
    "en",
    "a",
    "s",
    (("one", 0.1, 0.3), ("two", 0.3, 0.5), ("three", 0.6, 0.9)),
    (("w", 0.1), ("V", 0.2), ("t", 0.3), ("_", 0.5), ("T", 0.6)),
)


@pytest.mark.parametrize("seed", range(12))
def test_a_crop_has_the_words_between_its_cuts(seed: int) -> None:
    rows = np.arange(100)[:, None]
    part, clip = crop(rows, SENTENCE, 100.0, np.random.default_rng(seed), rows[:0])
    offset = part[0, 0] / 100
    assert list(part[:, 0]) == list(range(part[0, 0], part[-1, 0] + 1))
    assert clip.length == len(part)
    whole = SENTENCE.text.split()
    first = whole.index(clip.words[0][0])
    assert clip.text.split() == [word[0] for word in clip.words] == whole[first : first + len(clip.words)]
    for said, start, end in clip.words:
        reference = SENTENCE.words[whole.index(said)]
        assert (start + offset, end + offset) == pytest.approx(reference[1:])
        assert -1e-9 <= start < end <= len(part) / 100 + 1e-9
    kept = [(name, round(at + offset, 6)) for name, at in clip.phones]
    assert kept == [phone for phone in SENTENCE.phones if offset <= phone[1] < offset + len(part) / 100]


def test_crops_differ_and_reach_every_word() -> None:
    rows = np.zeros((100, 1))
    texts = {crop(rows, SENTENCE, 100.0, np.random.default_rng(seed), rows[:0])[1].text for seed in range(60)}
    assert texts == {"one", "two", "three", "one two", "two three", "one two three"}


def test_phones_without_times_are_not_cut() -> None:
    clip = Clip(0, 100, "one two", "en", "a", "s", SENTENCE.words[:2], (), ("w", "t"))
    rows = np.zeros((100, 1))
    assert all(crop(rows, clip, 100.0, np.random.default_rng(seed), rows[:0])[1] is clip for seed in range(8))


def test_only_the_datasets_that_are_named_are_cropped(mel_packs: list[Pack], tmp_path: Path) -> None:
    tokenizer = Tokenizer(world.tokenizer(tmp_path))

    def first_words(share: dict[str, float]) -> set[str]:
        options = world.rows(4.0, {"a": 1.0, "b": 1e-9}, crop=share)
        targets = RowSampler(mel_packs, PhoneInventory(["_", "t", "w"]), tokenizer, options).batch(0, 12).targets
        decoders = [WordDecoder(tokenizer, 6, partials=False) for _ in range(12)]
        heard = [[e for t in row[1:] for e in d.push(int(t))] for d, row in zip(decoders, targets.text_BT, strict=True)]
        return {next(event.text for event in events if isinstance(event, Word)) for events in heard}

    assert first_words({}) == first_words({"b": 1.0}) == {"one"}
    assert first_words({"a": 1.0}) == {"one", "two"}


def test_clips_that_cannot_be_drawn_are_counted(mel_packs: list[Pack], tmp_path: Path) -> None:
    tokenizer = Tokenizer(world.tokenizer(tmp_path))
    kind = PackKind("mel", 8, 100.0, (-1.88,) * 8)
    write_pack(tmp_path / "long", kind, [(np.zeros((500, 8)), Clip(0, 0, "one", "en", "a", "s"))])
    packs = [*mel_packs, Pack(tmp_path / "long")]
    options = world.rows(4.0, {"a": 1.0, "b": 1.0})
    sampler = RowSampler(packs, PhoneInventory(["_", "t", "w"]), tokenizer, options)
    assert sampler.remarks() == [
        "1 clips left out: longer than a row of 4 s; `slipstream data cut` cuts them at pauses"
    ]
    assert (sampler.timed, sampler.untimed) == (1, 1)
    with pytest.raises(ConfigError, match="no usable clip of it; 1 clips left out: longer than a row of 4 s"):
        RowSampler(packs[1:], PhoneInventory(["_", "t", "w"]), tokenizer, world.rows(4.0, {"a": 1.0}))


def test_tokens_of_clips_without_word_times_are_left_out_by_number(tmp_path: Path) -> None:
    kind = PackKind("tokens", 2, 12.5, (0.0, 0.0))
    rows = np.ones((20, 2), np.int64)
    timed = Clip(0, 0, "one", "en", "a", "s", (("one", 0.1, 0.4),))
    untimed = Clip(0, 0, "two", "en", "a", "s")
    write_pack(tmp_path / "pack", kind, [(rows, timed), (rows, untimed), (rows, untimed)])
    tokenizer = Tokenizer(world.tokenizer(tmp_path))
    sampler = TokenSampler([Pack(tmp_path / "pack")], tokenizer, world.rows(4.0, {"a": 1.0}))
    assert sampler.remarks() == ["2 clips left out: no word times; `slipstream data align` finds them"]
    assert sampler.batch(0, 2).codes_BKT.shape == (2, 2, 50)


def test_a_crop_of_late_tokens_has_the_audio_of_its_words_and_no_other(tmp_path: Path) -> None:
    late, spoken = 3, 20
    kind = PackKind("tokens", 1, 12.5, (99.0,))
    # The token of frame n is 100 + n; three tokens of silence come first.
    rows = np.array([[99]] * late + [[100 + frame] for frame in range(spoken)])
    frames = {"one": 1, "two": 9, "three": 15}
    words = tuple((text, frame / 12.5, (frame + 2) / 12.5) for text, frame in frames.items())
    clip = Clip(0, 0, "one two three", "en", "a", "s", words)
    write_pack(tmp_path / "pack", kind, [(rows, clip)], codec=PackCodec("m", "f", tail=late))
    options = world.rows(4.0, {"a": 1.0}, crop={"a": 1.0}, gaps=[(9, 9)], gap_shares=[1.0])
    tokenizer = Tokenizer(world.tokenizer(tmp_path))
    sampler = TokenSampler([Pack(tmp_path / "pack")], tokenizer, options)
    drawn = set()
    for row in range(40):
        batch = sampler.batch(row, 1)
        codes = list(batch.codes_BKT[0, 0])
        decoder = WordDecoder(tokenizer, 6, partials=False)
        events = [event for token in batch.targets.text_BT[0, 1:] for event in decoder.push(int(token))]
        found = [event for event in [*events, *decoder.flush()] if isinstance(event, Word)]
        for word in found:
            at = round(word.start * 12.5) + late
            assert codes[at : at + 2] == [100 + frames[word.text], 101 + frames[word.text]]
        texts = [word.text for word in found]
        assert [text for text, frame in frames.items() if 100 + frame in codes] == texts
        drawn.add(" ".join(texts))
    assert {"one", "two", "three", "one two", "two three"} <= drawn
