"""Make the table of letters of a language, with which `slipstream` identifies it and steers models towards it.

    python recipes/languages/table.py fr src/slipstream/language/tables/fr.json TEXT...

Texts have one sentence per line, plain or gzipped. The table has the counts of the most frequent sequences of letters.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path

from slipstream.data.texts import read_texts
from slipstream.language.letters import EDGE, ORDER, letters

SENTENCES = 40_000
SEQUENCES = 8_000


def main(language: str, out: Path, texts: list[Path]) -> None:
    words: Counter[str] = Counter()
    for path in texts:
        sentences = read_texts(path)
        for sentence in sentences[:: math.ceil(len(sentences) * len(texts) / SENTENCES)]:
            words.update(filter(None, map(letters, sentence.split())))
    sequences: Counter[str] = Counter()
    for word, count in words.items():
        text = f"{EDGE}{word}{EDGE}"
        for end in range(1, len(text)):
            for first in range(end, max(-1, end - ORDER), -1):
                sequences[text[first : end + 1]] += count
    counts = dict(sorted(sequences.most_common(SEQUENCES)))
    body = {"language": language, "texts": [path.name for path in texts], "counts": counts}
    out.write_text(json.dumps(body, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{out}: {sum(words.values())} words, {len(counts)} sequences")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(text) for text in sys.argv[3:]])
