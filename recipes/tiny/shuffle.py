"""Join files of sentences into one, in a random order that is the same each time.

python recipes/tiny/shuffle.py texts/en-*.txt.gz --out data/en.txt
"""

from __future__ import annotations

import argparse
import gzip
import random
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sentences = [line for path in arguments.texts for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    random.Random(0).shuffle(sentences)
    arguments.out.write_text("\n".join(sentences) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
