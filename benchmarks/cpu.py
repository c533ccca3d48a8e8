"""The CPU backend measured: its speed next to the `moshi` package, and what quantisation changes.

    python -m benchmarks.cpu step --model kyutai/stt-1b-en_fr     # milliseconds a frame
    python -m benchmarks.cpu logits --model kyutai/stt-1b-en_fr   # of quantised weights against float32
    python -m benchmarks.cpu words MANIFEST                       # errors and tokens of a trained model, quantised
    python -m benchmarks.cpu streams                              # how many the built-in model holds in real time
    python -m benchmarks.cpu start                                # a cold `slipstream transcribe`
    python -m benchmarks.cpu ahead MANIFEST                       # recordings with and without encoding ahead
    python -m benchmarks.cpu idle                                 # what a waiting runner costs

In `step`, `logits` and `idle` weights are random: the time of a step does not depend on them. In `step` each contender
has its own process, and they alternate, a few frames each, so that whatever else the machine does falls on all of
them. Ours run with every cache full, the case of a stream longer than the model's context. On a machine with other work
to do, `chrt -f 1 python -m benchmarks.cpu step --rest 0.1` holds that off while a frame is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from benchmarks.common import moshi_lm_arguments, resident_bytes
from benchmarks.models import MODELS, RandomWeights

import slipstream
from slipstream.audio import load as load_audio
from slipstream.backends.onnx.codec import codec_model
from slipstream.backends.onnx.inference import open_session, physical_cores
from slipstream.backends.onnx.lm import lm_model
from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.backends.onnx.text_streams import LMStreams
from slipstream.bundle import ModelBundle
from slipstream.checkpoints.mimi import dump_codec
from slipstream.checkpoints.presets import PRESETS
from slipstream.data.manifest import read_manifest
from slipstream.engine import engine
from slipstream.evaluate.scores import error_rates
from slipstream.evaluate.transcribe import transcribe_recordings
from slipstream.events import Final, Word
from slipstream.hints import Hints
from slipstream.loading import Mode, load_runner
from slipstream.model.config import PAD_ID, STTConfig
from slipstream.model.names import codec_shapes, lm_shapes
from slipstream.transcriber import Transcriber

Step = Callable[[], tuple[float, float]]
"""Runs one frame of one stream; gives the seconds that the codec and the LM took."""

TURN = 3  # frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    step, logits, words, streams, start, ahead, idle = (
        commands.add_parser(name) for name in ("step", "logits", "words", "streams", "start", "ahead", "idle")
    )
    for command in (step, logits):
        command.add_argument("--model", choices=list(MODELS), default="kyutai/stt-1b-en_fr")
        command.add_argument("--frames", type=int, default=100, help="frames of each that count")
    step.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    step.add_argument("--rest", type=float, default=0, help="pause after each turn, as a share of the time it took")
    step.add_argument("--json", action="store_true")
    words.add_argument("manifest")
    words.add_argument("--split", default="dev")
    ahead.add_argument("manifest")
    ahead.add_argument("--limit", type=int, default=10)
    words.add_argument("--limit", type=int)
    for command in (words, streams, start, ahead):
        command.add_argument("--model", default="tiny")
    step.set_defaults(run=lambda o: compare_speed(o.model, o.contenders, o.frames, o.rest, o.json))
    logits.set_defaults(run=lambda o: compare_logits(MODELS[o.model], o.frames))
    words.set_defaults(run=lambda o: compare_words(o.manifest, o.split, o.limit, o.model))
    streams.set_defaults(run=lambda o: count_streams(o.model))
    start.set_defaults(run=lambda o: measure_start(o.model))
    ahead.add_argument("--mode", choices=("live", "recordings"), default="recordings", help="the lookahead")
    ahead.set_defaults(run=lambda o: compare_ahead(o.manifest, o.limit, o.model, o.mode))
    idle.set_defaults(run=lambda o: measure_idle())
    options = parser.parse_args()
    options.run(options)


# ------------------------------------------------------------------------------------------------- speed


def compare_speed(model: str, contenders: list[str], frames: int, rest: float, as_json: bool) -> None:
    processes = [Contender(name, model) for name in contenders]
    print("all are loaded; measuring", file=sys.stderr, flush=True)
    for turn in range(-1, -(-frames // TURN)):
        for process in processes:
            start = time.perf_counter()
            process.run(TURN, counts=turn >= 0)
            time.sleep(rest * (time.perf_counter() - start))
    rows = [process.summary() for process in processes]
    for process in processes:
        process.close()
    if as_json:
        print(json.dumps(rows))
        return
    print(f"{model}, one stream, {physical_cores()} cores, load {os.getloadavg()[0]:.1f}, ms a frame: median (p99)")
    print(f"{'':18}{'codec':>16}{'LM':>16}{'both':>16}{'x faster':>10}{'GB':>6}")
    slowest = max(row["both"][0] for row in rows)
    for row in rows:
        parts = "".join(f"{median:8.1f} ({p99:5.1f})" for median, p99 in (row["codec"], row["lm"], row["both"]))
        print(f"{row['name']:18}{parts:>48}{slowest / row['both'][0]:10.1f}{row['gigabytes']:6.1f}")


class Contender:
    """One implementation in a separate process, which runs frames on request."""

    def __init__(self, name: str, model: str) -> None:
        self.name = name
        self.times: list[tuple[float, float]] = []
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, name, model))
        self.process.start()
        self.connection.recv()

    def run(self, frames: int, *, counts: bool) -> None:
        self.connection.send(frames)
        times = self.connection.recv()
        if counts:
            self.times += times

    def summary(self) -> dict[str, object]:
        codec, lm = np.array(self.times).T * 1000
        parts = {"codec": codec, "lm": lm, "both": codec + lm}
        figures = {part: (float(np.median(ms)), float(np.percentile(ms, 99))) for part, ms in parts.items()}
        return {"name": self.name, "gigabytes": resident_bytes(self.process.pid) / 1e9, **figures}

    def close(self) -> None:
        self.connection.send(0)
        self.process.join()


def _serve(connection: Connection, name: str, model: str) -> None:
    step = CONTENDERS[name](MODELS[model])
    connection.send("ready")
    while frames := connection.recv():
        connection.send([step() for _ in range(frames)])


def ours(quantize: str | None) -> Callable[[STTConfig], Step]:
    def make(config: STTConfig) -> Step:
        runner = random_runner(config, quantize)
        runner.restore(0, dataclasses.replace(runner.snapshot(0), frames=2 * config.lm.transformer.context))
        codec_seconds = []
        encode = runner.codec.step

        def timed_encode(frames_B: np.ndarray, active_B: np.ndarray) -> None:
            start = time.perf_counter()
            encode(frames_B, active_B)
            codec_seconds.append(time.perf_counter() - start)

        runner.codec.step = timed_encode  # type: ignore[method-assign]
        pcm = np.random.default_rng(0).uniform(-0.3, 0.3, (1, config.codec.frame_samples)).astype(np.float32)

        def step() -> tuple[float, float]:
            start = time.perf_counter()
            runner.step(pcm, np.array([True]))
            return codec_seconds[-1], time.perf_counter() - start - codec_seconds[-1]

        return step

    return make


def theirs(dtype: str) -> Callable[[STTConfig], Step]:
    def make(config: STTConfig) -> Step:
        os.environ["NO_TORCH_COMPILE"] = "1"
        import torch
        from moshi.models import LMGen, loaders

        lm = loaders.get_moshi_lm(None, moshi_lm_arguments(config), dtype=getattr(torch, dtype))
        codec = loaders.get_mimi(None, dump_codec(config.codec), num_codebooks=config.lm.num_codebooks)
        for module in (lm, codec):
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    tensor.requires_grad_(False).normal_(std=0.02)
        generator = LMGen(lm, use_sampling=False)
        codec.streaming_forever(1)
        generator.streaming_forever(1)
        pcm = torch.rand(1, 1, config.codec.frame_samples) * 0.6 - 0.3

        @torch.inference_mode()
        def step() -> tuple[float, float]:
            start = time.perf_counter()
            codes = codec.encode(pcm)
            encoded = time.perf_counter()
            generator.step(codes)
            return encoded - start, time.perf_counter() - encoded

        return step

    return make


CONTENDERS: dict[str, Callable[[STTConfig], Step]] = {
    "moshi float32": theirs("float32"),
    "moshi bfloat16": theirs("bfloat16"),
    "ours float32": ours(None),
    "ours int8": ours("int8"),
    "ours int4": ours("int4"),
}


# ------------------------------------------------------------------------------------------ quantisation


def compare_logits(config: STTConfig, frames: int) -> None:
    exact = logits(config, None, frames)
    print("logits of the same tokens against float32's, random weights: cosine (lowest), same most likely token")
    for quantize in ("int8", "int4"):
        found = logits(config, quantize, frames)
        cosine = (exact * found).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(found, axis=-1)
        same = (exact.argmax(-1) == found.argmax(-1)).mean()
        print(f"{quantize:8}{cosine.mean():.5f} ({cosine.min():.5f})   {same:.0%}")


def logits(config: STTConfig, quantize: str | None, frames: int) -> np.ndarray:
    """Logits `[frames, V]` for the same random tokens, from position 0 on."""
    weights = RandomWeights(lm_shapes(config.lm))
    session = open_session(lm_model(config.lm, weights, {}, quantize=quantize), threads=physical_cores())
    lm = LMStreams(config.lm, session, 1, np.zeros((1, config.lm.num_codebooks), np.int64))
    rng = np.random.default_rng(0)
    out = []
    for position in range(frames):
        lm.text_B[:] = rng.integers(0, config.lm.text_vocab)
        lm.codes_BK[:] = rng.integers(0, config.lm.audio_vocab, lm.codes_BK.shape)
        lm.step(np.array([position]), np.array([True]))
        out.append(lm.logits_BV[0].copy())
    return np.stack(out)


def compare_words(manifest: str, split: str, limit: int | None, model: str) -> None:
    """Word errors of a model in float32, int8 and int4, and how often a token differs after the same history."""
    tokenizer = ModelBundle.resolve(model).tokenizer
    recordings = [recording for recording in read_manifest(Path(manifest)) if recording.split == split][:limit]
    exact = load_runner(model, backend="onnx", slots=16, quantize="none")
    print(f"{'':10}{'WER':>8}{'95 %':>18}{'same token':>14}{'but pads':>12}   ({len(recordings)} recordings)")
    for quantize in ("none", "int8", "int4"):
        runner = load_runner(model, backend="onnx", slots=16, quantize=quantize)
        with Transcriber(runner, tokenizer, model=model) as transcriber:
            hypotheses, _ = transcribe_recordings(transcriber, recordings)
        words = error_rates(hypotheses).words
        same, same_words = agreement(exact, runner, [one.audio for one in recordings])
        interval = f"{words.low:.1%} to {words.high:.1%}"
        print(f"{quantize:10}{words.rate:8.1%}{interval:>18}{same:14.2%}{same_words:12.2%}", flush=True)


def agreement(exact: OnnxRunner, rounded: OnnxRunner, paths: list[Path]) -> tuple[float, float]:
    """Share of frames with the same token, of all and of those where `exact` wrote something; both read its text."""
    same, spoken = [], []
    for start in range(0, len(paths), exact.slots):
        audio = [frames_of(path, exact.frame_samples) for path in paths[start : start + exact.slots]]
        for runner in (exact, rounded):
            runner.reset(range(exact.slots))
        for frame in range(max(map(len, audio))):
            active_B = np.array([frame < len(one) for one in audio] + [False] * (exact.slots - len(audio)))
            pcm_BS = np.zeros((exact.slots, exact.frame_samples), np.float32)
            for slot in np.flatnonzero(active_B):
                pcm_BS[slot] = audio[slot][frame]
            expected, found = (runner.step(pcm_BS, active_B).token_B[active_B] for runner in (exact, rounded))
            rounded.lm.text_B[:] = exact.lm.text_B
            same.append(expected == found)
            spoken.append(expected != PAD_ID)
    all_same, all_spoken = np.concatenate(same), np.concatenate(spoken)
    return float(all_same.mean()), float(all_same[all_spoken].mean())


def frames_of(path: Path, samples: int) -> np.ndarray:
    audio = load_audio(path)
    return np.pad(audio, (0, -len(audio) % samples)).reshape(-1, samples)


# --------------------------------------------------------------------------------------------- small model


def count_streams(model: str) -> None:
    """Step times by number of streams, until the slowest in a hundred is no longer in real time."""
    for slots in (1, 8, 16, 24, *range(32, 1024, 32)):
        median, p99 = full_house(model, slots)
        speed = 80 * slots / median
        print(f"{slots:4} streams: {median:6.1f} ms a step ({p99:6.1f}), {speed:5.0f} x real time", flush=True)
        if p99 > 80:
            break


def full_house(model: str, slots: int) -> tuple[float, float]:
    """Median and p99 milliseconds of a step in which every slot is active and every cache full."""
    runner = load_runner(model, backend="onnx", slots=slots)
    pcm = np.random.default_rng(0).normal(0, 0.1, (slots, runner.frame_samples)).astype(np.float32)
    full = dataclasses.replace(runner.snapshot(0), frames=2 * runner.config.lm.transformer.context)
    for slot in range(slots):
        runner.restore(slot, full)
    times = []
    for _ in range(120):
        start = time.perf_counter()
        runner.step(pcm, np.ones(slots, bool))
        times.append(time.perf_counter() - start)
    return float(np.median(times[20:]) * 1000), float(np.percentile(times[20:], 99) * 1000)


def measure_start(model: str, seconds: float = 10, times: int = 7) -> None:
    """Wall time, processor time and peak memory of `slipstream transcribe` on a file of `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 24_000, 0, "NONE", ""))
            noise = np.random.default_rng(0).normal(0, 1000, round(seconds * 24_000))
            file.writeframes(noise.astype("<i2").tobytes())
        command = [sys.executable, "-m", "slipstream", "transcribe", "--model", model, str(path)]
        # Bytecode is cached, as that of an installed package is; the first run writes it.
        environment = os.environ | {
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(Path(folder) / "bytecode"),
        }
        runs = [run_cold(command, environment) for _ in range(1 + times)][1:]
    wall, processor, megabytes = np.median(runs, axis=0)
    print(f"{seconds:.0f} s of audio: {wall:.2f} s, {processor:.2f} s of processor time, {megabytes:.0f} MB (medians)")


def compare_ahead(manifest: str, limit: int, model: str, mode: Mode) -> None:
    """Speed of recordings, one after the other, and the time of their last flush; two ways, alternately."""
    recordings = [load_audio(r.audio, 24_000) for r in islice(read_manifest(Path(manifest)), limit)]
    seconds = sum(map(len, recordings)) / 24_000
    limits = {"frame by frame": 0, "encoded ahead": engine.MAX_SESSIONS_AHEAD}
    with slipstream.load(model, backend="onnx", slots=2, mode=mode) as transcriber:
        for beam in (1, 2):
            times: dict[str, list[float]] = {way: [] for way in limits}
            flushes: dict[str, list[float]] = {way: [] for way in limits}
            words = set()
            for way, most in 3 * list(limits.items()):
                engine.MAX_SESSIONS_AHEAD = most
                start, written = time.perf_counter(), []
                for audio_S in recordings:
                    events = list(transcriber.stream([audio_S], 24_000, hints=Hints(beam=beam)))
                    written += [event.text for event in events if isinstance(event, Word)]
                    flushes[way] += [event.flush_seconds for event in events if isinstance(event, Final)]
                times[way].append(time.perf_counter() - start)
                words.add(tuple(written))
            assert len(words) == 1, "the words differ"
            for way in limits:
                speed, flush = seconds / np.median(times[way]), 1e3 * np.median(flushes[way])
                print(f"beam {beam}, {way:14}: {speed:5.1f} x real time, last flush {flush:4.0f} ms (medians)")


def run_cold(command: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Wall time and processor time in seconds, and peak memory in MB, of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def measure_idle(seconds: float = 20) -> None:
    """Processor time of a runner of the true width that waits between two frames."""
    config = PRESETS["kyutai/stt-1b-en_fr"]
    transformer = config.lm.transformer.model_copy(update={"num_layers": 2})
    config = config.model_copy(update={"lm": config.lm.model_copy(update={"transformer": transformer})})
    runner = random_runner(config, "int8")
    runner.step(np.zeros((1, config.codec.frame_samples), np.float32), np.array([True]))
    start = time.process_time()
    time.sleep(seconds)
    print(f"processor time in {seconds:.0f} s of waiting: {(time.process_time() - start) * 1000:.1f} ms")


# ----------------------------------------------------------------------------------------------- weights


def random_runner(config: STTConfig, quantize: str | None) -> OnnxRunner:
    """A runner of files, as a converted checkpoint has them: their weights are mapped."""
    lm, codec = RandomWeights(lm_shapes(config.lm)), RandomWeights(codec_shapes(config.codec))
    with tempfile.TemporaryDirectory() as folder:
        lm_path, codec_path = Path(folder) / "lm.onnx", Path(folder) / "codec.onnx"
        lm_model(config.lm, lm, {}, quantize=quantize).save(lm_path)
        codec_model(config.codec, codec, num_codebooks=config.lm.num_codebooks, quantize=quantize).save(codec_path)
        return OnnxRunner(config, lm_path, codec_path)


if __name__ == "__main__":
    main()
