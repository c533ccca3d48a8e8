"""The card of a trained model: what it was trained on, with licences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from slipstream.data.packs import Clip, Pack

UNKNOWN_LICENCE = "not stated"


def write_card(
    folder: Path, packs: Iterable[Pack], weights: Mapping[str, float], start: str | None, kind: str = "speech-to-text"
) -> None:
    """Write `README.md` into a model's folder: datasets with hours, languages and licences, as their packs have them.

    Args:
        weights: how often each dataset was drawn, relative to the others.
        start: the model that the run started from, whose data and licence count too.
        kind: "speech-to-text" or "text-to-speech".
    """
    clips: dict[str, list[tuple[Clip, float]]] = defaultdict(list)
    for pack in packs:
        for clip in pack.clips:
            if clip.dataset in weights:
                clips[clip.dataset].append((clip, clip.length / pack.kind.rate))
    languages = sorted({clip.language for of in clips.values() for clip, _ in of})
    licences = sorted({clip.licence or UNKNOWN_LICENCE for of in clips.values() for clip, _ in of})
    lines = [
        "---",
        "library_name: slipstream-stt",
        f"pipeline_tag: {'automatic-speech-recognition' if kind == 'speech-to-text' else kind}",
        f"language: [{', '.join(languages)}]",
        "---",
        "",
        f"# {folder.resolve().parent.name}",
        "",
        f"A delayed-streams {kind} model, trained with `slipstream train`.",
        "",
        *([f"It continues from `{start}`, whose licence and training data apply as well.", ""] if start else []),
        "## Training data",
        "",
        "| dataset | hours | recordings | speakers | languages | licences | share of rows |",
        "|---|---|---|---|---|---|---|",
    ]
    total = sum(weights.values())
    for name, of in sorted(clips.items()):
        hours = sum(seconds for _, seconds in of) / 3600
        cells = (
            name,
            f"{hours:.2f}",
            str(len(of)),
            str(len({clip.speaker for clip, _ in of} - {""}) or "not stated"),
            ", ".join(sorted({clip.language for clip, _ in of})),
            ", ".join(sorted({clip.licence or UNKNOWN_LICENCE for clip, _ in of})),
            f"{weights[name] / total:.0%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Licences of the recordings: {', '.join(licences)}.", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
