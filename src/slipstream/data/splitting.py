"""Split recordings for training, validation and tests, so that a test measures what is new."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from slipstream.data.manifest import ManifestError, Recording
from slipstream.data.tokenizer import plain_text


def split_recordings(
    recordings: Iterable[Recording], shares: Mapping[str, float], by: str = "speaker", *, seed: int = 0
) -> dict[str, list[Recording]]:
    """Divide recordings into splits, all of one speaker (or another key) into the same one.

    The groups are ordered by a hash of their name, so a group mostly stays where it is when others are added.

    Args:
        shares: share of the audio of each split but the last, which gets the rest.
        by: a key of the manifest: `speaker`, `dataset`, `lang`, or a key of your own. "recording": no groups.
        seed: another seed gives another division.

    Returns:
        The recordings of each split, with their `split` set.

    Raises:
        ManifestError: A recording has no such key, or there are fewer groups than splits.
    """
    groups: dict[str, list[Recording]] = defaultdict(list)
    for recording in recordings:
        groups[_key(recording, by)].append(recording)
    if len(groups) < len(shares):
        raise ManifestError(
            f"{len(groups)} values of {by} cannot be divided into {len(shares)} splits: divide by another key, or give "
            "a split a share of 0"
        )
    names = sorted(groups, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    total = sum(_seconds(group) for group in groups.values())
    splits: dict[str, list[Recording]] = {name: [] for name in shares}
    *measured, rest = shares
    for position, split in enumerate(measured):
        taken = 0.0
        while not splits[split] or taken < shares[split] * total:
            if len(names) <= len(shares) - position - 1:  # each split that follows needs a group
                break
            group = groups[names.pop(0)]
            taken += _seconds(group)
            splits[split] += [replace(recording, split=split) for recording in group]
    splits[rest] = [replace(recording, split=rest) for name in names for recording in groups[name]]
    return splits


def without_shared_texts(splits: Mapping[str, list[Recording]]) -> tuple[dict[str, list[Recording]], int]:
    """Leave out what an earlier split has a text of, and count it: give the test split first, that of training last.

    Recordings without a text stay.
    """
    seen: set[str] = set()
    kept: dict[str, list[Recording]] = {}
    for name, recordings in splits.items():
        kept[name] = [one for one in recordings if (plain := plain_text(one.text)) not in seen or not plain]
        seen |= {plain_text(one.text) for one in kept[name]}
    return kept, sum(map(len, splits.values())) - sum(map(len, kept.values()))


def _key(recording: Recording, by: str) -> str:
    if by == "recording":
        return str(recording.audio)
    value = getattr(recording, by) if by in ("speaker", "dataset", "lang") else recording.extra.get(by)
    if not value:
        raise ManifestError(recording.explain(f"has no {by}, which the splits are made by"))
    return str(value)


def _seconds(recordings: Iterable[Recording]) -> float:
    return sum(recording.seconds or 1.0 for recording in recordings)
