"""Transcribe many files on a Ray cluster, one engine with four slots per actor. Needs the extra `ray`.

python examples/batch_ray.py a.mp3 b.mp3 c.mp3
"""

import sys

import slipstream.ray


def main(*paths: str, model: str = "tiny", actors: int = 2) -> None:
    for row in slipstream.ray.transcribe(paths, model=model, slots=4, actors=actors).iter_rows():
        print(f"{row['id']}: {row['error'] or row['text']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
