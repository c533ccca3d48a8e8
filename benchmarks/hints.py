"""Hints: recall of rare names, false insertions, word error rates, the delay of words, and the cost.

    python benchmarks/hints.py make build/names            # needs espeak-ng and flite
    python benchmarks/hints.py names build/names --list 10 50 100 1000 --silent manifest.jsonl
    python benchmarks/hints.py names build/names --prompt "A letter from {name}."
    python benchmarks/hints.py compare manifest.jsonl --dataset omnilingo_cv61 --beam 1 2 4 --lm notes.txt
    python benchmarks/hints.py compare manifest.jsonl --lang fr --language fr en --prompt "Bonjour à tous."
    python benchmarks/hints.py cost

`make` speaks 200 sentences with 50 names in three voices. The names are those of a longer list that the model writes
wrong without a sentence. `names` transcribes them without and with the names as keywords. `compare` transcribes the
development recordings of a manifest (`split` is `dev`) with each beam, each beam of at least 2 with the text of `--lm`,
and the prompts and languages one by one. The first beam is what the others are compared with.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jiwer
import numpy as np
from benchmarks.common import milliseconds
from benchmarks.names import CANDIDATES, OTHERS, SENTENCES

import slipstream
from slipstream import Hints, Keyword, SessionOptions, Transcriber, Transcript
from slipstream.audio import load
from slipstream.bundle import ModelBundle
from slipstream.data.manifest import Recording
from slipstream.evaluate.scores import BOOTSTRAP_DRAWS, normalise
from slipstream.evaluate.transcribe import TAIL_SECONDS, transcribe_recordings
from slipstream.hints.search import new_search
from slipstream.model.runner import Choice, Steering

VOICES = {
    "slt": ("flite", "-voice", "slt", "-t", "{text}", "-o", "{path}"),
    "rms": ("flite", "-voice", "rms", "-t", "{text}", "-o", "{path}"),
    "espeak": ("espeak-ng", "-v", "en-us", "-s", "150", "-w", "{path}", "{text}"),
}
SAMPLE = Path(__file__).parent.parent / "examples" / "sample.opus"
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
    names.add_argument("--limit", type=int, help="sentences, chosen at random")
    names.add_argument("--half", type=int, choices=(0, 1), help="the sentences of every other name, such as for tuning")
    names.add_argument("--beam", type=int, default=1)
    names.add_argument("--list", type=int, nargs="*", default=[NAMES], help="keywords, filled up with other names")
    names.add_argument("--weight", type=float, default=1.0)
    names.add_argument("--prompt", help="text before each sentence, in which {name} is its name")
    names.add_argument("--silent", type=Path, help="a manifest of speech without the names")
    names.add_argument("--dataset", help="which of its datasets")
    compared = modes.add_parser("compare")
    compared.add_argument("manifest", type=Path)
    compared.add_argument("--dataset")
    compared.add_argument("--lang", default="en")
    compared.add_argument("--limit", type=int, help="recordings, chosen at random")
    compared.add_argument("--beam", type=int, nargs="+", default=[1])
    compared.add_argument("--lm", type=Path, help="text for the beams; sentences of the recordings are left out")
    compared.add_argument("--prompt", nargs="+", default=[])
    compared.add_argument("--language", nargs="+", default=[])
    compared.add_argument("--min-confidence", type=float)
    modes.add_parser("cost")
    arguments = parser.parse_args()
    if arguments.mode == "make":
        make(arguments.folder, arguments.model)
    elif arguments.mode == "names":
        run_names(arguments)
    elif arguments.mode == "compare":
        run_comparison(arguments)
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
    with slipstream.load(model, slots=4, beam=1) as transcriber:
        texts = _transcribe(transcriber, [(path, Hints()) for path in paths])
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
    names = list(dict.fromkeys(row["name"] for row in rows))
    if arguments.half is not None:
        rows = [row for row in rows if names.index(row["name"]) % 2 == arguments.half]
    if arguments.limit:
        rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[: arguments.limit]]
    silent = _manifest(arguments.silent, arguments.dataset, "en", None) if arguments.silent else []
    beam = arguments.beam
    with slipstream.load(arguments.model, slots=max(4, beam), beam=1) as transcriber:

        def transcribe(hints: Callable[[dict[str, str]], Hints]) -> list[Transcript]:
            return _transcribe(transcriber, [(arguments.folder / row["audio"], hints(row)) for row in rows])

        free = transcribe(lambda row: Hints(beam=beam))
        print(f"beam {beam}, no keywords: {_score(rows, free)}", flush=True)
        if arguments.prompt:
            found = transcribe(lambda row: Hints(prompt=arguments.prompt.format(name=row["name"]), beam=beam))
            print(f"beam {beam}, prompt {arguments.prompt!r}: {_score(rows, found)}", flush=True)
        for size in arguments.list:
            words = [*names, *OTHERS][:size]
            hints = Hints(keywords=[Keyword(word, arguments.weight) for word in words], beam=beam)
            found = transcribe(lambda row, hints=hints: hints)  # type: ignore[misc]
            listed = [i for i, row in enumerate(rows) if row["name"] in words]
            with_them, without = (
                _score([rows[i] for i in listed], [each[i] for i in listed]) for each in (found, free)
            )
            print(f"beam {beam}, {size} keywords of weight {arguments.weight:g}: {with_them}", flush=True)
            if len(listed) < len(rows):
                print(f"  the same sentences without: {without}", flush=True)
            if silent:
                heard = _transcribe(transcriber, [(recording.audio, hints) for recording in silent])
                false = sum(_has(text.text, word) for text in heard for word in words)
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


def run_comparison(arguments: argparse.Namespace) -> None:
    recordings = _manifest(arguments.manifest, arguments.dataset, arguments.lang, arguments.limit)
    first, *others = arguments.beam
    compared = {f"beam {first}": Hints(beam=first)} | {f"beam {beam}": Hints(beam=beam) for beam in others}
    if arguments.lm:
        text = _without(arguments.lm, recordings, arguments.lang)
        compared |= {f"beam {beam} with the text": Hints(beam=beam, lm=text) for beam in arguments.beam if beam > 1}
    compared |= {f"prompt {prompt!r}": Hints(prompt=prompt, beam=first) for prompt in arguments.prompt}
    compared |= {f"language {code}": Hints(languages=[code], beam=first) for code in arguments.language}
    before: np.ndarray | None = None
    with slipstream.load(arguments.model, slots=max(4, *arguments.beam), beam=1) as transcriber:
        for name, hints in compared.items():
            began = time.process_time()
            found, speed = transcribe_recordings(
                transcriber, recordings, min_confidence=arguments.min_confidence, hints=hints
            )
            seconds = time.process_time() - began
            counts = np.array([_errors(one.recording.text, one.text, arguments.lang) for one in found])
            low, high = _interval(counts[:, :2])
            rate, omitted, letters = (
                100 * counts[:, i].sum() / counts[:, j].sum() for i, j in ((0, 1), (2, 1), (3, 4))
            )
            frames = 12.5 * (speed.audio + TAIL_SECONDS * len(found))
            line = f"{name}: WER {rate:.1f} % ({100 * low:.1f} to {100 * high:.1f}), omitted {omitted:.0f} %, "
            line += f"CER {letters:.1f} % on {len(found)} recordings, {1e3 * seconds / frames:.1f} ms of CPU per frame"
            delays = [out - word.end for one in found for word, out in zip(one.words, one.emitted, strict=True)]
            if delays:
                median, late = np.quantile(delays, [0.5, 0.95])
                line += f", words {median:.2f} s after their end (95 %: {late:.2f} s)"
            if before is not None:
                difference = np.stack([counts[:, 0] - before[:, 0], counts[:, 1]], axis=1)
                low, high = _interval(difference)
                change = difference[:, 0].sum() / counts[:, 1].sum()
                line += f"; change {100 * change:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            else:
                before = counts
            print(line, flush=True)


def _without(path: Path, recordings: Sequence[Recording], lang: str) -> str:
    """Return the lines of a text, `.gz` or not, that are not the text of a recording."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    spoken = {normalise(recording.text, lang) for recording in recordings}
    return "\n".join(line for line in data.decode().splitlines() if normalise(line, lang) not in spoken)


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
    run_list_cost(model)


def run_list_cost(model: str, rounds: int = 7) -> None:
    """Measure the CPU time of a whole frame of speech, without and with lists of keywords."""
    times: dict[int, list[float]] = {size: [] for size in (0, 10, 100, 1000)}
    with slipstream.load(model, beam=1, mode="live") as transcriber:
        audio_S = load(SAMPLE, transcriber.sample_rate)
        frames = (
            len(audio_S) / transcriber.sample_rate * transcriber.frame_rate + transcriber.engine.format.delay_frames
        )
        for turn in range(rounds + 1):
            for size, taken in times.items():
                hints = Hints(keywords=[*CANDIDATES, *OTHERS][:size])
                began = time.process_time()
                transcriber.transcribe(audio_S, transcriber.sample_rate, hints=hints)
                if turn:  # the first round builds the lists
                    taken.append((time.process_time() - began) / frames)
    found = ", ".join(f"{size} {1e3 * float(np.median(each)):.2f}" for size, each in times.items())
    print(f"frame of speech, ms of CPU by keywords: {found}", flush=True)


def _transcribe(transcriber: Transcriber, jobs: Sequence[tuple[Path, Hints]]) -> list[Transcript]:
    def transcribe(job: tuple[Path, Hints]) -> Transcript:
        return transcriber.transcribe(job[0], options=SessionOptions(partials=False, hints=job[1]))

    with ThreadPoolExecutor(max(1, transcriber.slots // jobs[0][1].width)) as pool:
        return list(pool.map(transcribe, jobs))


def _manifest(path: Path, dataset: str | None, lang: str, limit: int | None) -> list[Recording]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == "dev" and row["lang"] == lang]
    rows = [row for row in rows if dataset is None or row["dataset"] == dataset]
    if not rows:
        raise SystemExit(f"{path} has no development recordings in {lang}" + (f" of {dataset}" if dataset else ""))
    chosen = np.random.default_rng(0).permutation(len(rows))[:limit]
    folder = path.parent if (path.parent / rows[0]["audio"]).exists() else path.parent.parent
    return [Recording(folder / rows[i]["audio"], rows[i]["text"]) for i in chosen]


def _errors(reference: str, text: str, lang: str) -> tuple[int, int, int, int, int]:
    """Return word errors, words, omitted words, character errors and characters."""
    reference, text = normalise(reference, lang), normalise(text, lang) or "-"
    words, letters = jiwer.process_words(reference, text), jiwer.process_characters(reference, text)
    errors, wrong = (one.substitutions + one.deletions + one.insertions for one in (words, letters))
    return errors, len(reference.split()), words.deletions, wrong, len(reference)


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
