"""Keywords and beam search: recall of rare names, false insertions, word error rates, delay and cost.

    python benchmarks/hints.py make build/names            # needs espeak-ng and flite
    python benchmarks/hints.py names build/names --beam 1 4
    python benchmarks/hints.py beam manifest.jsonl --dataset omnilingo_cv61 --beam 1 2 4
    python benchmarks/hints.py cost

`make` speaks 200 sentences with 50 names in three voices. The names are those of a longer list that the model writes
wrong without a sentence. `names` transcribes them without and with the names as keywords.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jiwer
import numpy as np
from benchmarks.common import milliseconds
from benchmarks.names import CANDIDATES, OTHERS, SENTENCES

import slipstream
from slipstream import Hints, Keyword, SessionOptions, Transcriber, Transcript
from slipstream.bundle import ModelBundle
from slipstream.evaluate.scores import BOOTSTRAP_DRAWS, normalise
from slipstream.hints.search import new_search
from slipstream.model.runner import Choice, Steering

VOICES = {
    "slt": ("flite", "-voice", "slt", "-t", "{text}", "-o", "{path}"),
    "rms": ("flite", "-voice", "rms", "-t", "{text}", "-o", "{path}"),
    "espeak": ("espeak-ng", "-v", "en-us", "-s", "150", "-w", "{path}", "{text}"),
}
NAMES = 50
SENTENCES_PER_NAME = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    modes = parser.add_subparsers(required=True, dest="mode")
    making = modes.add_parser("make")
    making.add_argument("folder", type=Path)
    names = modes.add_parser("names")
    names.add_argument("folder", type=Path)
    names.add_argument("--limit", type=int)
    names.add_argument("--beam", type=int, nargs="+", default=[1])
    names.add_argument("--list", type=int, nargs="+", default=[NAMES], help="keywords, filled up with other names")
    names.add_argument("--weight", type=float, default=1.0)
    names.add_argument("--silent", type=Path, help="a manifest of speech without the names")
    names.add_argument("--dataset", help="which of its datasets")
    beams = modes.add_parser("beam")
    beams.add_argument("manifest", type=Path)
    beams.add_argument("--dataset", required=True)
    beams.add_argument("--lang", default="en")
    beams.add_argument("--limit", type=int)
    beams.add_argument("--beam", type=int, nargs="+", default=[1, 2, 4])
    modes.add_parser("cost")
    arguments = parser.parse_args()
    if arguments.mode == "make":
        make(arguments.folder, arguments.model)
    elif arguments.mode == "names":
        run_names(arguments)
    elif arguments.mode == "beam":
        run_beams(arguments)
    else:
        run_cost(arguments.model)


def make(folder: Path, model: str) -> None:
    """Choose the names that the model gets wrong, and speak the sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    voices = list(VOICES)
    paths = [
        _speak(f"{name}.", voices[number % len(voices)], folder / f"probe-{name}.wav")
        for number, name in enumerate(CANDIDATES)
    ]
    with slipstream.load(model, slots=4) as transcriber:
        texts = _transcribe(transcriber, paths, Hints())
    for path in paths:
        path.unlink()
    wrong = [name for name, text in zip(CANDIDATES, texts, strict=True) if not _has(text.text, name)]
    chosen = wrong[:: max(1, len(wrong) // NAMES)][:NAMES]
    rows = []
    for number, name in enumerate(name for name in chosen for _ in range(SENTENCES_PER_NAME)):
        voice = voices[number % len(voices)]
        text = SENTENCES[number % len(SENTENCES)].format(name=name)
        path = _speak(text, voice, folder / f"{number:03}-{voice}.wav")
        rows.append({"audio": path.name, "text": text, "name": name, "voice": voice})
    (folder / "names.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} sentences with {len(chosen)} names")


def run_names(arguments: argparse.Namespace) -> None:
    lines = (arguments.folder / "names.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    if arguments.limit:
        rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[: arguments.limit]]
    names = list(dict.fromkeys(json.loads(line)["name"] for line in lines))
    silent = _manifest(arguments.silent, arguments.dataset, "en", None) if arguments.silent else []
    with slipstream.load(arguments.model, slots=max(4, *arguments.beam)) as transcriber:
        for beam in arguments.beam:
            for size in [0, *arguments.list]:
                keywords = [*names, *OTHERS][:size] if size >= len(names) else names[:size]
                hints = Hints(keywords=[Keyword(word, arguments.weight) for word in keywords], beam=beam)
                texts = _transcribe(transcriber, [arguments.folder / row["audio"] for row in rows], hints)
                print(f"beam {beam}, {size:4} keywords: {_score(rows, texts)}", flush=True)
                if silent and size:
                    heard = _transcribe(transcriber, [path for path, _ in silent], hints)
                    false = sum(_has(text.text, word) for text in heard for word in keywords)
                    hours = sum(text.duration for text in heard) / 3600
                    print(f"  {false} false insertions in {hours:.2f} h without the names", flush=True)


def _score(rows: Sequence[dict[str, str]], texts: Sequence[Transcript]) -> str:
    """Recall of the names, and the errors of all other words."""
    found = errors = words = 0
    for row, text in zip(rows, texts, strict=True):
        found += _has(text.text, row["name"])
        reference, written = normalise(row["text"], "en").split(), normalise(text.text, "en").split()
        name = set(normalise(row["name"], "en").split())
        words += sum(word not in name for word in reference)
        for chunk in jiwer.process_words(" ".join(reference), " ".join(written) or "-").alignments[0]:
            if chunk.type == "equal":
                continue
            part = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            if part:
                errors += sum(word not in name for word in part)
            else:
                near = reference[max(0, chunk.ref_start_idx - 1) : chunk.ref_start_idx + 1]
                errors += 0 if name & set(near) else chunk.hyp_end_idx - chunk.hyp_start_idx
    return f"recall {100 * found / len(rows):.1f} % of {len(rows)}, WER of the other words {100 * errors / words:.1f} %"


def run_beams(arguments: argparse.Namespace) -> None:
    rows = _manifest(arguments.manifest, arguments.dataset, arguments.lang, arguments.limit)
    before: np.ndarray | None = None
    with slipstream.load(arguments.model, slots=max(4, *arguments.beam)) as transcriber:
        for beam in arguments.beam:
            began = time.process_time()
            texts = _transcribe(transcriber, [path for path, _ in rows], Hints(beam=beam))
            seconds = time.process_time() - began
            counts = np.array(
                [_errors(text, one.text, arguments.lang) for (_, text), one in zip(rows, texts, strict=True)]
            )
            low, high = _interval(counts)
            rate = counts[:, 0].sum() / counts[:, 1].sum()
            audio = sum(text.duration for text in texts)
            line = (
                f"beam {beam}: WER {100 * rate:.1f} % ({100 * low:.1f} to {100 * high:.1f}) on {len(rows)} recordings"
            )
            line += f", {1e3 * seconds / audio * 0.08:.1f} ms of CPU per frame"
            if before is not None:
                difference = np.stack([counts[:, 0] - before[:, 0], counts[:, 1]], axis=1)
                low, high = _interval(difference)
                change = difference[:, 0].sum() / counts[:, 1].sum()
                line += f"; change {100 * change:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            else:
                before = counts
            print(line, flush=True)


def run_cost(model: str) -> None:
    """Measure the CPU time of steps without and with steering, and of the search of one frame."""
    for slots in (1, 4):
        runner = slipstream.load_runner(model, slots=slots)
        frame_BS = np.random.default_rng(0).normal(0, 0.05, (slots, runner.frame_samples)).astype(np.float32)
        biases = np.tile(np.arange(500), (slots, 1)), np.full((slots, 500), 1e-3, np.float32)
        kinds = {"plain": None, "candidates": Steering.none(slots), "500 biases": Steering(*biases)}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(60):
            for kind, steering in kinds.items():
                began = time.process_time()
                runner.step(frame_BS, np.ones(slots, np.bool_), steering)
                times[kind].append(time.process_time() - began)
        found = ", ".join(f"{kind} {1e3 * float(np.median(each)):.2f}" for kind, each in times.items())
        print(f"step of {slots} slots, ms of CPU: {found}", flush=True)
    tokenizer = ModelBundle.resolve(model).tokenizer
    random = np.random.default_rng(0)
    text = tokenizer.encode(" ".join(SENTENCES).lower().replace("{name}", ""))
    vocabulary = tokenizer.vocab_size
    for size in (10, 100, 1000):
        words = [*CANDIDATES, *OTHERS][:size]
        began = time.perf_counter()
        search = new_search(Hints(keywords=words), tokenizer)
        built = time.perf_counter() - began
        assert search is not None
        place = 0

        def step() -> None:
            nonlocal place
            place += 1
            search.biases(0)  # noqa: B023
            token = text[place % len(text)]
            others = random.choice(vocabulary, 8, replace=False).tolist()
            search.advance([Choice(token, [token, *others[1:]], [-0.1] * 8, token, -0.1)])  # noqa: B023

        row = milliseconds(step, 2000)
        print(f"{size:4} keywords: {1e3 * row['median_ms']:.0f} us per frame, built in {1e3 * built:.0f} ms")


def _transcribe(transcriber: Transcriber, paths: Sequence[Path], hints: Hints) -> list[Transcript]:
    options = SessionOptions(partials=False, hints=hints)
    with ThreadPoolExecutor(max(1, transcriber.slots // hints.beam)) as pool:
        return list(pool.map(lambda path: transcriber.transcribe(path, options=options), paths))


def _manifest(path: Path, dataset: str | None, lang: str, limit: int | None) -> list[tuple[Path, str]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == "dev" and row["lang"] == lang]
    rows = [row for row in rows if dataset is None or row["dataset"] == dataset]
    if not rows:
        raise SystemExit(f"{path} has no development recordings in {lang}" + (f" of {dataset}" if dataset else ""))
    chosen = np.random.default_rng(0).permutation(len(rows))[:limit]
    folder = path.parent if (path.parent / rows[0]["audio"]).exists() else path.parent.parent
    return [(folder / rows[i]["audio"], rows[i]["text"]) for i in chosen]


def _errors(reference: str, text: str, lang: str) -> tuple[int, int]:
    reference = normalise(reference, lang)
    output = jiwer.process_words(reference, normalise(text, lang) or "-")
    return output.substitutions + output.deletions + output.insertions, len(reference.split())


def _interval(counts_N2: np.ndarray) -> tuple[float, float]:
    drawn = np.random.default_rng(0).integers(0, len(counts_N2), (BOOTSTRAP_DRAWS, len(counts_N2)))
    sums = counts_N2[drawn].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return float(low), float(high)


def _has(text: str, name: str) -> bool:
    return f" {normalise(name, 'en')} " in f" {normalise(text, 'en')} "


def _speak(text: str, voice: str, path: Path) -> Path:
    subprocess.run([part.format(text=text, path=path) for part in VOICES[voice]], check=True, capture_output=True)
    return path


if __name__ == "__main__":
    main()
