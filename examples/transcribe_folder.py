"""Transcribe all recordings of a folder, several at the same time, and write a JSON file for each.

python examples/transcribe_folder.py recordings/ out/ kyutai/stt-1b-en_fr-candle
"""

import sys
from pathlib import Path

import slipstream
from slipstream.audio import audio_suffixes


def main(folder: str, out: str, model: str = "tiny", slots: int = 4) -> None:
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix in audio_suffixes())
    Path(out).mkdir(parents=True, exist_ok=True)
    with slipstream.load(model, slots=slots) as transcriber:
        results = transcriber.transcribe_many(paths, return_exceptions=True)
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, slipstream.SlipstreamError):
                print(f"{path.name}: failed: {result}")
                continue
            (Path(out) / f"{path.stem}.json").write_text(result.to_json(), encoding="utf-8")
            print(f"{path.name}: {len(result.words)} words")


if __name__ == "__main__":
    main(*sys.argv[1:4])
