"""Splits share no speaker and, on request, no text."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.data.manifest import ManifestError, Recording
from slipstream.data.splitting import split_recordings, without_shared_texts

SHARES = {"test": 0.1, "valid": 0.1, "train": 0.8}


def recordings(speakers: int = 40) -> list[Recording]:
    return [
        Recording(Path(f"{s}-{n}.wav"), f"Sentence {(s + n) % 50}.", seconds=2.0, speaker=f"s{s}", extra={"room": "a"})
        for s in range(speakers)
        for n in range(5)
    ]


def test_no_speaker_is_in_two_splits_and_nothing_is_lost() -> None:
    splits = split_recordings(recordings(), SHARES)
    speakers = [{one.speaker for one in splits[name]} for name in SHARES]
    assert sum(map(len, speakers)) == 40
    assert sum(map(len, splits.values())) == 200
    assert all(one.split == name for name, of in splits.items() for one in of)
    assert [len(splits[name]) for name in SHARES] == [20, 20, 160]


def test_most_speakers_stay_in_their_split_when_others_are_added() -> None:
    before = {one.audio: one.split for of in split_recordings(recordings(40), SHARES).values() for one in of}
    after = {one.audio: one.split for of in split_recordings(recordings(41), SHARES).values() for one in of}
    assert sum(after[audio] != split for audio, split in before.items()) <= 15


def test_a_text_is_in_one_split_and_stays_with_the_test() -> None:
    splits = split_recordings(recordings(), SHARES)
    kept, left_out = without_shared_texts(splits)
    texts = [{one.text for one in kept[name]} for name in SHARES]
    assert kept["test"] == splits["test"]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    assert left_out == 200 - sum(map(len, kept.values())) > 0


def test_recordings_that_cannot_be_divided_are_named() -> None:
    with pytest.raises(ManifestError, match="2 values of speaker cannot be divided into 3 splits"):
        split_recordings(recordings(2), SHARES)
    with pytest.raises(ManifestError, match=r"0-0\.wav: has no mood"):
        split_recordings(recordings(), SHARES, "mood")
    with pytest.raises(ManifestError, match="1 values of room"):
        split_recordings(recordings(), SHARES, "room")
    small = split_recordings(recordings(3), SHARES)
    assert all(small.values())
