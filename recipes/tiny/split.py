"""Split the shared recordings into manifests: train, untranscribed, test, and noise.

    python recipes/tiny/split.py DATA OUT

Test recordings: the development sets, one recording of each of 100 sentences of the reader `kathleen`, and ten minutes
of `puri_gagan_cv` and `dctts-philipp`. All recordings of these sentences and of the last two datasets stay out of the
other manifests. `calibrate.jsonl` and `reliability.jsonl` are two halves of the test recordings, without a common
speaker in sets of several: the model's calibration is fitted to one, and measured on the other.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

from slipstream.data.texts import as_sentence
from slipstream.data.tokenizer import plain_text

Row = dict[str, Any]
SENTENCES, SEED, PHILIPP = 100, 2026, 32
NOT_TRAINED = ("puri_gagan_cv", "dctts-philipp")
SEVERAL_CLIPS_EACH = ("speechocean762", "puri_gagan_cv")


def main(data: Path, out: Path) -> None:
    rows = _read(data / "speech/manifest.jsonl", data)
    texts = sorted({plain_text(row["text"]) for row in rows if row["dataset"] == "kathleen"})
    held_out = set(random.Random(SEED).sample(texts, SENTENCES))
    test, seen = [row for row in rows if row["split"] == "dev"], set()
    for row in rows:
        if row["dataset"] == "kathleen" and (text := plain_text(row["text"])) in held_out - seen:
            seen.add(text)
            test.append(row)
    test += [row for row in rows if row["dataset"] == "puri_gagan_cv"]
    test += [row for row in rows if row["dataset"] == "dctts-philipp"][:PHILIPP]
    rest = [row for row in rows if row["split"] != "dev" and row["dataset"] not in NOT_TRAINED]
    rest = [row for row in rest if row["dataset"] != "kathleen" or plain_text(row["text"]) not in held_out]
    _write(out / "test.jsonl", test)
    for half, name in enumerate(("calibrate", "reliability")):
        _write(out / f"{name}.jsonl", [row for row in test if _half(row) == half])
    _write(out / "train.jsonl", [row for row in rest if row["text"]])
    _write(out / "untranscribed.jsonl", [row | {"text": ""} for row in rest if not row["text"]])
    noise = _read(data / "noise/manifest.jsonl", data)
    _write(out / "noise.jsonl", [{"audio": row["audio"], "text": "", "dataset": "noise"} for row in noise])


def _half(row: Row) -> int:
    who = row["speaker"] if row["dataset"] in SEVERAL_CLIPS_EACH else Path(row["audio"]).name
    return hashlib.sha256(f"{row['dataset']} {who}".encode()).digest()[-1] % 2


def _read(manifest: Path, root: Path) -> list[Row]:
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return [row | {"audio": str(root / row["audio"]), "text": as_sentence(row.get("text") or "")} for row in rows]


def _write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
