"""Draw the reliability of word confidence, before and after calibration, from the JSON of `slipstream evaluate`.

python recipes/tiny/reliability.py runs/tiny-reliability.json docs/images/reliability.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SIZE, MARGIN = 220, 40


def main(evaluation: Path, out: Path) -> None:
    scores = json.loads(evaluation.read_text(encoding="utf-8"))["confidence"]
    plots = [("as the model gives it", scores["words"]), ("calibrated", scores["calibrated_words"])]
    plots += [("omissions, calibrated", scores["calibrated_omissions"])]
    shown = [(title, plot) for title, plot in plots if plot is not None]
    width = len(shown) * (SIZE + MARGIN) + MARGIN
    body = "".join(_plot(title, plot, MARGIN + i * (SIZE + MARGIN)) for i, (title, plot) in enumerate(shown))
    out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {SIZE + 95}" width="{width}" '
        f'font-family="sans-serif" font-size="13" fill="#555">\n{body}</svg>\n',
        encoding="utf-8",
    )


def _plot(title: str, scores: dict[str, Any], left: int) -> str:
    bottom = 30 + SIZE
    lines = [
        f'<text x="{left + SIZE / 2}" y="18" text-anchor="middle">{title}</text>',
        f'<path d="M{left} 30V{bottom}H{left + SIZE}M{left} {bottom}L{left + SIZE} 30" fill="none" stroke="#999"/>',
    ]
    for one in scores["bins"]:
        x, y = left + one["predicted"] * SIZE, bottom - one["happened"] * SIZE
        radius = 2 + 14 * (one["count"] / scores["events"]) ** 0.5
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="#4a7fb5" fill-opacity=".8"/>')
    lines += [
        f'<text x="{left + SIZE / 2}" y="{bottom + 20}" text-anchor="middle">predicted share (0 to 1)</text>',
        f'<text x="{left + SIZE / 2}" y="{bottom + 40}" text-anchor="middle">'
        f"ECE {scores['ece']:.1%}, NCE {scores['nce']:.2f}</text>",
        f'<text x="{left - 8}" y="{30 + SIZE / 2}" text-anchor="middle" '
        f'transform="rotate(-90 {left - 8} {30 + SIZE / 2})">measured share</text>',
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
