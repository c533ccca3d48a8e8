"""Live streams on one GPU, measured beside the `moshi` package in the same run.

    python -m benchmarks.gpu steps --model kyutai/stt-1b-en_fr --sizes 1,8,64,256,512
    python -m benchmarks.gpu capacity arrivals --model kyutai/stt-2.6b-en --seconds 60
    python -m benchmarks.gpu correctness --device cpu --model small

    steps        time of a step, from samples on the host to tokens on the host, by number of streams; memory
    capacity     the most streams whose 99th percentile stays below --limit-ms
    arrivals     steps while streams begin and end at random, --seconds of audio as fast as steps run
    live         sessions on the engine in real time for --seconds, beginning and ending at random
    flush        from the end of speech to the last word, with --busy streams beside
    correctness  tokens of float32 on the device against the CPU, of bfloat16 and TF32 against float32
    roofline     each part of the step: bytes, operations, time against what the device can do at best
    attention    the attention over the rings in torch's kernels against the time to read the rings

The weights are random: times do not depend on them. Every ring is full: each stream is past its context. In `live` and
`flush` the model's work is done in full, and its text replaced by a script. Writes gpu.json and gpu.md into --out.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.engine import FreeRunner
from benchmarks.roofline import Device, parts, stream_bytes
from tests.fakes import tiny_tokenizer
from tests.models import stt_config
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from slipstream.arrays import BoolArray, FloatArray
from slipstream.backends.torch.graphs import capture
from slipstream.backends.torch.lm import LM
from slipstream.backends.torch.mimi import Codebook, Mimi
from slipstream.backends.torch.runner import SlotState, TorchRunner
from slipstream.backends.torch.state import State
from slipstream.checkpoints.kyutai import dump_kyutai
from slipstream.checkpoints.mimi import dump_codec
from slipstream.checkpoints.presets import PRESETS
from slipstream.engine.engine import Engine, StepReport
from slipstream.engine.live import LiveSession
from slipstream.engine.session import SessionOptions
from slipstream.errors import Overloaded
from slipstream.events import Event, Final
from slipstream.model.config import STTConfig
from slipstream.model.runner import State as AnyState
from slipstream.model.runner import StepOutput

FRAME_SECONDS = 0.08
ATTENTION_KERNELS = (
    SDPBackend.MATH,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
)
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.manual_seed(0)
    bench = Bench(options)
    report: Row = {"about": bench.about, "options": vars(options) | {"out": str(options.out)}}
    for name in options.parts:
        print(f"{name} ...", flush=True)
        report[name] = PARTS[name](bench)
        print(table(report[name]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "gpu.md").write_text(markdown(report))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=list(PARTS), metavar="part", help=", ".join(PARTS))
    parser.add_argument("--model", choices=[*PRESETS, "small"], default="kyutai/stt-1b-en_fr")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of the LM")
    parser.add_argument("--tf32", action="store_true", help="let our codec round to TF32, as torch lets moshi's")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="leave out the moshi package")
    parser.add_argument("--sizes", type=numbers, default=[1, 8, 64, 256, 512], help="of steps and roofline: streams")
    parser.add_argument("--steps", type=int, default=200, help="timed steps for each number of streams")
    parser.add_argument("--limit-ms", type=float, default=80.0, help="of capacity: for the 99th percentile")
    parser.add_argument("--grain", type=int, default=16, help="of capacity: streams that it may be off by")
    parser.add_argument("--most", type=int, default=4096, help="of capacity: streams not to go beyond")
    parser.add_argument("--streams", type=int, default=256, help="of arrivals, live and attention")
    parser.add_argument("--load", type=float, default=0.8, help="of arrivals and live: the share of slots taken")
    parser.add_argument("--session-seconds", type=float, default=60.0, help="of arrivals and live: mean length")
    parser.add_argument("--seconds", type=float, default=120.0, help="of arrivals, live and flush")
    parser.add_argument("--busy", type=numbers, default=[64, 512], help="of flush: streams")
    parser.add_argument("--frames", type=int, default=50, help="of correctness: frames")
    parser.add_argument("--bandwidth", type=float, default=3.35e12, help="bytes a second; the H100 SXM's")
    parser.add_argument("--lm-rate", type=float, default=989e12, help="operations a second in the LM's type")
    parser.add_argument("--codec-rate", type=float, default=67e12, help="the same in float32; with --tf32 494e12")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    return parser.parse_args(arguments)


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


class Bench:
    """The model under test, and what all parts need of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.dtype: torch.dtype = getattr(torch, options.dtype)
        self.config = stt_config(conditioners=()) if options.model == "small" else PRESETS[options.model]
        with torch.inference_mode():
            self.codec, self.lm = random_codec(self.config, self.device), random_lm(self.config, self.device)
        self.lm_f32 = self.lm
        if self.dtype != torch.float32:
            # A copy costs memory for as long as the bench lives: only where a part compares the two.
            self.lm_f32 = copy.deepcopy(self.lm) if "correctness" in options.parts else self.lm
            self.lm = self.lm.to(self.dtype)
        self.best = Device(options.bandwidth, options.lm_rate, options.codec_rate)
        self._full: SlotState | None = None

    @property
    def about(self) -> Row:
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else platform.processor() or "cpu",
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "MB of rings a stream": stream_bytes(self.config, self.lm.text_linear.weight.element_size()) / 1e6,
        }

    def runner(self, slots: int, buckets: Sequence[int] | None = None) -> TorchRunner:
        options = self.options
        return TorchRunner(self.config, self.codec, self.lm, slots=slots, buckets=buckets, tf32=options.tf32)

    def full_runner(self, slots: int, buckets: Sequence[int] | None = None) -> TorchRunner:
        """A runner whose streams are all past their context."""
        if self._full is None:
            one = self.runner(1)
            pcm_BS = noise(1, self.config)
            for _ in range(positions(self.config)):
                one.step(pcm_BS, np.ones(1, np.bool_))
            self._full = one.snapshot(0)
        runner = self.runner(slots, buckets)
        for slot in range(slots):
            runner.restore(slot, self._full)
        return runner

    def clear(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def memory(self) -> float | None:
        """GB that the device's allocator has taken at most since `clear`; None on the CPU."""
        return torch.cuda.max_memory_reserved(self.device) / 1e9 if self.device.type == "cuda" else None

    def contenders(self) -> list[tuple[str, Callable[[int], Callable[[], object]]]]:
        """Of each: what makes a step of so many streams, all active and past their context."""

        def ours(streams: int) -> Callable[[], object]:
            runner, active_B = self.full_runner(streams, (streams,)), np.ones(streams, np.bool_)
            pcm_BS = noise(streams, self.config)
            return lambda: runner.step(pcm_BS, active_B)

        def theirs(streams: int) -> Callable[[], object]:
            peer = Moshi(self.config, self.device, self.dtype, streams)
            peer.fill()
            pcm_BS, active_B = noise(streams, self.config), np.ones(streams, np.bool_)
            return lambda: peer.step(pcm_BS, active_B)

        return [("slipstream", ours), *([("moshi", theirs)] if self.options.peer else [])]


# ------------------------------------------------------------------------------------------------------------ the parts


def steps(bench: Bench) -> list[Row]:
    rows = []
    for name, make in bench.contenders():
        for streams in bench.options.sizes:
            bench.clear()
            row: Row = {"package": name, "streams": streams}
            try:
                row |= milliseconds(make(streams), bench.options.steps)
            except torch.OutOfMemoryError:
                row |= {"median_ms": None, "p99_ms": None}
            rows.append(row | {"memory_gb": bench.memory()})
    return rows


def capacity(bench: Bench) -> list[Row]:
    rows = []
    for name, make in bench.contenders():
        tried: dict[int, Row] = {}

        def holds(streams: int, make: Any = make, tried: dict[int, Row] = tried) -> bool:
            bench.clear()
            try:
                tried[streams] = milliseconds(make(streams), bench.options.steps) | {"memory_gb": bench.memory()}
            except torch.OutOfMemoryError:
                return False
            return bool(tried[streams]["p99_ms"] < bench.options.limit_ms)

        most = largest(holds, bench.options.grain, bench.options.most)
        rows.append({"package": name, "streams": most, **tried.get(most, {})})
    return rows


def arrivals(bench: Bench) -> list[Row]:
    options, rows = bench.options, []
    bench.clear()
    rows.append({"package": "slipstream"} | walk(bench.full_runner(options.streams), bench.config, options))
    if options.peer:
        bench.clear()
        peer = Moshi(bench.config, bench.device, bench.dtype, options.streams)
        peer.fill()
        rows.append({"package": "moshi"} | walk(peer, bench.config, options))
    return rows


def live(bench: Bench) -> list[Row]:
    options = bench.options
    bench.clear()
    runner = Scripted(bench.runner(options.streams))
    rate = options.load * options.streams / options.session_seconds
    return [Live(runner, rate, options.session_seconds, options.seconds).run()]


def flush(bench: Bench) -> list[Row]:
    rows = []
    for busy in bench.options.busy:
        bench.clear()
        runner = Scripted(bench.runner(busy + max(1, busy // 8)))
        # Every stream lasts for a minute, and another takes its place: so `busy` stay, and one ends every now and then.
        rows.append(Live(runner, busy / 60, 60.0, bench.options.seconds, at_start=busy).run())
    return rows


def correctness(bench: Bench) -> list[Row]:
    frames = bench.options.frames
    cpu_codec, cpu_lm = copy.deepcopy(bench.codec).cpu(), copy.deepcopy(bench.lm_f32).float().cpu()
    lm = bench.lm_f32.float()
    audio_TBS = np.stack([noise(4, bench.config, seed) for seed in range(frames)])
    alone = TorchRunner(bench.config, bench.codec, lm, slots=1)
    together = TorchRunner(bench.config, bench.codec, lm, slots=4, buckets=(4,))
    gathered = TorchRunner(bench.config, bench.codec, lm, slots=64)
    cpu = say(TorchRunner(bench.config, cpu_codec, cpu_lm, slots=4), audio_TBS, range(4))
    batch = say(together, audio_TBS, range(4))
    back = say(gathered, audio_TBS, range(60, 64))
    single = np.concatenate([fresh(alone, audio_TBS[:, slot : slot + 1]) for slot in range(4)], axis=1)
    rows = [
        {"compared": f"float32, device and CPU: the same of {len(np.unique(cpu))} tokens", "share": share(batch, cpu)},
        {"compared": "float32, four slots and each alone: the same tokens", "share": share(batch, single)},
        {"compared": "float32, gathered slots and each alone: the same tokens", "share": share(back, single)},
    ]
    pcm_BS = torch.from_numpy(audio_TBS.transpose(1, 0, 2).reshape(4, -1)).to(bench.device)
    with torch.inference_mode():
        with allow_tf32(False):
            exact, _ = bench.codec.encode(pcm_BS, num_codebooks=bench.config.lm.num_codebooks)
        with allow_tf32(True):
            rounded, _ = bench.codec.encode(pcm_BS, num_codebooks=bench.config.lm.num_codebooks)
        rows.append(
            {"compared": "codec, TF32 and float32: the same codes", "share": float((exact == rounded).float().mean())}
        )
        text = torch.from_numpy(batch.T[:, :-1].copy()).to(bench.device)
        likeliest = [
            model.text_logits(model(text, exact[..., 1:], None, model.condition(bench.config.condition_values))[0])
            for model in (lm, bench.lm)
        ]
        equal = float((likeliest[0].argmax(-1) == likeliest[1].argmax(-1)).float().mean())
        rows.append({"compared": f"LM, {bench.options.dtype} and float32: the same likeliest token", "share": equal})
    return rows


def roofline(bench: Bench) -> list[Row]:
    rows = []
    for streams in bench.options.sizes:
        bench.clear()
        bounds = parts(bench.config, streams, bench.best, bench.lm.text_linear.weight.element_size())
        runner, pcm_BS = bench.full_runner(streams, (streams,)), noise(streams, bench.config)
        active_B = np.ones(streams, np.bool_)
        whole = milliseconds(partial(runner.step, pcm_BS, active_B), bench.options.steps)
        del runner
        with torch.inference_mode(), allow_tf32(bench.options.tf32):
            measured = {name: part_ms(bench, run) for name, run in isolated(bench, streams)}
        total = 0.0
        for part in bounds:
            bound_ms = 1e3 * part.bound(bench.best)
            total += bound_ms
            rows.append(
                {
                    "streams": streams,
                    "part": part.name,
                    "gb": part.bytes / 1e9,
                    "gflop": part.flops / 1e9,
                    "bound_ms": bound_ms,
                    "measured_ms": measured[part.name],
                    "times_bound": measured[part.name] / bound_ms,
                }
            )
        step_ms = whole["median_ms"]
        rows.append({"streams": streams, "part": "the whole step", "bound_ms": total, "measured_ms": step_ms})
        rows[-1]["times_bound"] = step_ms / total
    return rows


def attention(bench: Bench) -> list[Row]:
    """One layer's attention of the LM, one query a stream, over full rings."""
    transformer, streams = bench.config.lm.transformer, bench.options.streams
    shape = streams, transformer.num_heads, transformer.context, transformer.head_dim
    rows: list[Row] = []
    bench.clear()
    with torch.inference_mode():
        k, v = (torch.randn(shape, device=bench.device, dtype=bench.dtype) for _ in range(2))
        q = torch.randn(*shape[:2], 1, shape[3], device=bench.device, dtype=bench.dtype)
        mask = torch.zeros(streams, 1, 1, transformer.context, device=bench.device, dtype=bench.dtype)
        bound_ms = 1e3 * 2 * k.numel() * k.element_size() / bench.best.bandwidth
        for kernel in ATTENTION_KERNELS:
            for masked in (mask, None):
                row: Row = {"kernel": kernel.name.lower(), "mask": masked is not None, "bound_ms": bound_ms}
                try:
                    with sdpa_kernel(kernel):
                        row["measured_ms"] = part_ms(bench, lambda m=masked: F.scaled_dot_product_attention(q, k, v, m))
                except RuntimeError as error:
                    row["refused"] = str(error).splitlines()[0][:60]
                else:
                    row["times_bound"] = row["measured_ms"] / bound_ms
                rows.append(row)
    return rows


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    part.__name__: part for part in (steps, capacity, arrivals, live, flush, correctness, roofline, attention)
}


# ------------------------------------------------------------------------------------------------------------ the peer


class Moshi:
    """The published package's codec and LM over `streams` streams, as its own server drives them."""

    def __init__(self, config: STTConfig, device: torch.device, dtype: torch.dtype, streams: int) -> None:
        from moshi.models import LMGen, loaders

        raw = dump_kyutai(config)
        about_files = {
            "stt_config", "lm_gen_config", "model_type", "model_id", "moshi_name", "mimi_name", "tokenizer_name",
            "conditioners",
        }  # fmt: skip
        kwargs = {key: value for key, value in raw.items() if key not in about_files}
        books = config.lm.num_codebooks
        self.codec = loaders.get_mimi(None, dump_codec(config.codec), device=device, num_codebooks=books)
        lm = loaders.get_moshi_lm(None, kwargs, device="meta", dtype=dtype).to_empty(device=device)
        with torch.no_grad():
            for tensor in (*self.codec.parameters(), *self.codec.buffers(), *lm.parameters(), *lm.buffers()):
                tensor.requires_grad_(False)
                if tensor.is_floating_point():
                    tensor.normal_(0, 0.02)
        self.generator = LMGen(lm, use_sampling=False, support_out_of_sync=True)
        self.device = device
        self.slots = streams
        # Its state lives in its modules for as long as these contexts are open.
        self._open = ExitStack()
        self._open.enter_context(self.codec.streaming(streams))
        self._open.enter_context(self.generator.streaming(streams))
        self._active_B = np.ones(streams, np.bool_)

    def reset(self, slots: Sequence[int]) -> None:
        mask_B = torch.zeros(self.slots, dtype=torch.bool)
        mask_B[list(slots)] = True
        for streaming in (self.codec, self.generator):
            streaming.reset_streaming(mask_B.to(self.device))

    def step(self, pcm_BS: FloatArray, active_B: BoolArray) -> object:
        with torch.no_grad():
            if (active_B != self._active_B).any():
                self._active_B = active_B.copy()
                for streaming in (self.codec, self.generator):
                    streaming.set_exec_mask(torch.from_numpy(active_B).to(self.device))
            codes = self.codec.encode(torch.from_numpy(pcm_BS).to(self.device)[:, None])
            return self.generator.step(codes).cpu().numpy()

    def fill(self) -> None:
        """Put every stream past its context: its attention counts positions in these tensors."""
        pcm_BS = np.zeros((self.slots, self.codec.frame_size), np.float32)
        for _ in range(3):
            self.step(pcm_BS, np.ones(self.slots, np.bool_))
        for module in (*self.codec.modules(), *self.generator.lm_model.modules()):
            state = getattr(module, "_streaming_state", None)
            cache = getattr(state, "kv_cache", None)
            for owner, name in ((state, "offset"), (state, "offsets"), (cache, "end_offset")):
                position = getattr(owner, name, None)
                if isinstance(position, Tensor):
                    position.fill_(10_000)


# ---------------------------------------------------------------------------------------- streams that come and go


class Coming:
    """Who has a slot, frame by frame, when streams begin and end at random; the lowest free slot is given first."""

    def __init__(self, slots: int, load: float, session_seconds: float, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._ends = FRAME_SECONDS / session_seconds
        self._begins = load * slots * self._ends
        self.active_B = np.arange(slots) < round(load * slots)

    def __iter__(self) -> Iterator[list[int]]:
        """For each frame, the slots that a new stream has taken; `active_B` holds all that are taken."""
        while True:
            self.active_B &= self._random.random(len(self.active_B)) >= self._ends
            new = np.flatnonzero(~self.active_B)[: self._random.poisson(self._begins)]
            self.active_B[new] = True
            yield new.tolist()


def walk(model: Any, config: STTConfig, options: argparse.Namespace) -> Row:
    """Steps of `options.seconds` of audio while streams come and go."""
    coming = Coming(model.slots, options.load, options.session_seconds)
    pcm_BS, times, active = noise(model.slots, config), [], []
    for _, new in zip(range(10 + round(options.seconds / FRAME_SECONDS)), coming, strict=False):
        began = time.perf_counter()
        if new:
            model.reset(new)
        model.step(pcm_BS, coming.active_B)
        times.append(time.perf_counter() - began)
        active.append(int(coming.active_B.sum()))
    late = float(np.mean(np.array(times[10:]) > FRAME_SECONDS))
    return {"slots": model.slots, "active": float(np.mean(active)), **summary(times[10:]), "over_80_ms": late}


class Scripted:
    """A runner whose device does all its work, while its text comes from a script."""

    def __init__(self, runner: TorchRunner) -> None:
        self.runner, self.script = runner, FreeRunner(runner.slots)
        self.slots, self.frame_samples, self.frame_rate = runner.slots, runner.frame_samples, runner.frame_rate
        self.delay_frames = runner.delay_frames
        self._active_B = np.zeros(runner.slots, np.bool_)

    def reset(self, slots: Sequence[int]) -> None:
        self.runner.reset(slots)
        self.script.reset(slots)

    def step(self, pcm_BS: FloatArray, active_B: BoolArray) -> StepOutput:
        self.runner.step(pcm_BS, active_B)
        return self.script.step(pcm_BS, active_B)

    def snapshot(self, slot: int) -> AnyState:
        return self.runner.snapshot(slot), self.script.snapshot(slot)

    def restore(self, slot: int, state: AnyState) -> None:
        self.runner.restore(slot, state[0])
        self.script.restore(slot, state[1])


@dataclass
class Live:
    """Sessions on an engine in real time, a frame every 80 ms each, that begin at `rate` a second and end at random.

    One thread sends for all of them; what an end of speech costs is timed from `finish` to `Final`.
    """

    runner: Scripted
    rate: float
    session_seconds: float
    seconds: float
    at_start: int | None = None
    reports: list[StepReport] = field(default_factory=list)
    finals: list[float] = field(default_factory=list)
    refused: int = 0

    def run(self) -> Row:
        rng = np.random.default_rng(0)
        audio_S = rng.normal(0, 0.05, self.runner.frame_samples).astype(np.float32)
        open_now: deque[tuple[float, float, LiveSession]] = deque()  # next frame due, when it ends, the session
        with Engine(self.runner, tiny_tokenizer(), observer=self.reports.append) as engine:
            began = time.monotonic()
            at_start = round(self.rate * self.session_seconds) if self.at_start is None else self.at_start
            for phase in np.sort(rng.uniform(0, FRAME_SECONDS, at_start)):
                self._begin(engine, began + float(phase), rng, open_now)
            next_begins = began + float(rng.exponential(1 / self.rate))
            while (now := time.monotonic()) < began + self.seconds:
                if now >= next_begins:
                    self._begin(engine, now, rng, open_now)
                    next_begins += float(rng.exponential(1 / self.rate))
                while open_now and open_now[0][0] <= now:
                    due, ends, session = open_now.popleft()
                    session.offer(audio_S)
                    if due >= ends:
                        session.finish()
                    else:
                        self._insert(open_now, (due + FRAME_SECONDS, ends, session))
                first = min(next_begins, open_now[0][0] if open_now else math.inf)
                time.sleep(max(0.0, min(first - time.monotonic(), 0.005)))
        steps = self.reports[len(self.reports) // 20 :]  # the first twentieth warms up
        flushes = sorted(self.finals)
        return {
            "slots": self.runner.slots,
            "sessions": float(np.mean([step.sessions for step in steps])),
            "refused": self.refused,
            **summary([step.seconds for step in steps]),
            "lag_p99_ms": 1e3 * float(np.percentile([step.lag_seconds for step in steps], 99)),
            "ends": len(flushes),
            "end_to_last_word_median_ms": 1e3 * float(np.median(flushes)) if flushes else None,
            "end_to_last_word_p99_ms": 1e3 * float(np.percentile(flushes, 99)) if flushes else None,
        }

    def _begin(self, engine: Engine, due: float, rng: np.random.Generator, open_now: deque[Any]) -> None:
        ending = _Ending(self.finals)
        try:
            session = engine.open(SessionOptions(steps=True), wake=ending)
        except Overloaded:
            self.refused += 1
            return
        ending.session = session
        self._insert(open_now, (due, due + float(rng.exponential(self.session_seconds)), session))

    @staticmethod
    def _insert(open_now: deque[Any], item: tuple[float, float, LiveSession]) -> None:
        """Keep the order of time; what comes next almost always belongs at the end."""
        at = len(open_now)
        while at and open_now[at - 1][0] > item[0]:
            at -= 1
        open_now.insert(at, item)


class _Ending:
    """Reads a session's events, and notes how long its last flush took."""

    def __init__(self, finals: list[float]) -> None:
        self.finals = finals
        self.session: LiveSession | None = None

    def __call__(self) -> None:
        events: Iterable[Event] = self.session.take() if self.session is not None else ()
        self.finals += [event.flush_seconds for event in events if isinstance(event, Final)]


# --------------------------------------------------------------------------------------------- the parts of a step


def isolated(bench: Bench, streams: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each part of the step as a function of its own, under the names of the roofline."""
    config, codec, lm = bench.config, bench.codec, bench.lm
    state = codec.encoder_state(streams)
    assert isinstance(state, dict)
    pcm_B1S = torch.randn(streams, 1, config.codec.frame_samples, device=bench.device)
    latent, _ = codec.encoder(pcm_B1S, state["encoder"])

    def convolutions() -> None:
        y, _ = codec.encoder(pcm_B1S, state["encoder"])
        if config.codec.stride > 1:
            codec.downsample(y, state["downsample"])

    yield "codec: convolutions", convolutions
    positions_T = latent.shape[-1]
    yield (
        "codec: Transformer products",
        lambda: multiply(codec.encoder_transformer, streams, positions_T, torch.float32),
    )
    yield "codec: attention", attend(codec.encoder_transformer, state["transformer"], streams, positions_T)
    frame_BD1 = torch.randn(streams, config.codec.dim, 1, device=bench.device)
    yield "codec: quantiser", lambda: codec.quantizer.encode(frame_BD1, config.lm.num_codebooks)
    yield "LM: products", lambda: multiply(lm.transformer, streams, 1, bench.dtype)
    yield "LM: attention", attend(lm.transformer, lm.init_state(streams), streams, 1)
    hidden = torch.randn(streams, 1, config.lm.transformer.dim, device=bench.device, dtype=bench.dtype)
    yield "LM: heads", lambda: lm.text_logits(hidden)


def multiply(transformer: nn.Module, streams: int, positions_T: int, dtype: torch.dtype) -> None:
    """Every linear layer of a Transformer on inputs of its own."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            shape = streams, positions_T, module.in_features
            module(torch.ones(shape, device=module.weight.device, dtype=dtype))


def attend(transformer: nn.Module, state: State, streams: int, positions_T: int) -> Callable[[], None]:
    """The attention of every layer over full rings."""
    assert isinstance(state, dict)
    rings: Any = state["rings"]
    _, H, C, D = rings[0].k.shape
    q = torch.randn(streams, H, positions_T, D, device=rings[0].k.device, dtype=rings[0].k.dtype)
    mask = torch.zeros(streams, 1, positions_T, C, device=q.device, dtype=q.dtype)
    for ring in rings:
        ring.k.normal_()
        ring.v.normal_()

    def run() -> None:
        for ring in rings:
            F.scaled_dot_product_attention(q, ring.k, ring.v, mask)

    return run


def part_ms(bench: Bench, run: Callable[[], object]) -> float:
    """Median milliseconds of a part; on CUDA as a graph, as in the step."""
    if bench.device.type != "cuda":
        return float(milliseconds(run, min(bench.options.steps, 20))["median_ms"])
    stream = torch.cuda.Stream(bench.device)
    stream.wait_stream(torch.cuda.current_stream(bench.device))
    replay = capture(lambda: (run(), None)[1], stream, torch.cuda.graph_pool_handle()) or run
    times = []
    for _ in range(bench.options.steps):
        with torch.cuda.stream(stream):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            replay()
            end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return float(np.median(times))


# ------------------------------------------------------------------------------------------------------------- the rest


def random_codec(config: STTConfig, device: torch.device) -> Mimi:
    with torch.device("meta"):
        codec = Mimi(config.codec)
    fresh_mel = Mimi(config.codec).mel if config.codec.mel else None
    codec = codec.to_empty(device=device).eval()
    if fresh_mel is not None:
        codec.mel = fresh_mel.to(device)
    randomise(codec)
    for module in codec.modules():
        if isinstance(module, Codebook):
            module.refresh()
    return codec.requires_grad_(False)


def random_lm(config: STTConfig, device: torch.device) -> LM:
    with torch.device("meta"):
        lm = LM(config.lm)
    lm = lm.to_empty(device=device).eval()
    randomise(lm)
    return lm.requires_grad_(False)


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Weights that keep each layer's output about as large as its input, and tokens that vary."""
    for name, tensor in module.state_dict().items():
        if name.endswith("cluster_usage"):
            tensor.uniform_(0.5, 2.0)
        elif name.endswith(("embedding_sum", "_emb.weight", "learnt_padding")):
            tensor.normal_()
        elif tensor.dim() == 1:
            tensor.fill_(0.3 if name.endswith(("scale1", "scale2")) else float(name.endswith("weight")))
        else:
            gain = 3.0 if name.startswith(("text_linear", "pause_heads")) else 1.5
            tensor.normal_(0, gain / math.sqrt(math.prod(tensor.shape[1:])))


def noise(streams: int, config: STTConfig, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.1, (streams, config.codec.frame_samples)).astype(np.float32)


def positions(config: STTConfig) -> int:
    """Frames after which every ring is full."""
    return max(config.lm.transformer.context, math.ceil(config.codec.transformer.context / config.codec.stride)) + 1


def say(runner: TorchRunner, audio_TBS: FloatArray, slots: Sequence[int]) -> np.ndarray[Any, Any]:
    """The greedy tokens `[T, B]` of the given slots; nobody else is active."""
    active_B = np.isin(np.arange(runner.slots), list(slots))
    pcm_BS = np.zeros((runner.slots, runner.frame_samples), np.float32)
    tokens = []
    for frame_BS in audio_TBS:
        pcm_BS[list(slots)] = frame_BS
        tokens.append(runner.step(pcm_BS, active_B).token_B[list(slots)])
    return np.stack(tokens)


def fresh(runner: TorchRunner, audio_TBS: FloatArray) -> np.ndarray[Any, Any]:
    runner.reset([0])
    return say(runner, audio_TBS, [0])


def share(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    return float(np.mean(left == right))


@contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def largest(holds: Callable[[int], bool], grain: int, most: int) -> int:
    """The largest multiple of `grain` up to `most` that holds, given that all smaller ones do; 0 where none does."""
    low, high = 0, 1
    while high * grain <= most and holds(high * grain):
        low, high = high, 2 * high
    high = min(high, most // grain + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle * grain) else (low, middle)
    return low * grain


def milliseconds(step: Callable[[], object], steps: int) -> Row:
    """Of `steps` steps after some that warm up; `step` returns when the device is done."""
    times = []
    for _ in range(5 + steps):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return summary(times[5:])


def summary(seconds: Sequence[float]) -> Row:
    return {
        "median_ms": 1e3 * float(np.median(seconds)),
        "p99_ms": 1e3 * float(np.percentile(seconds, 99)),
        "worst_ms": 1e3 * max(seconds),
    }


def table(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([shown(row.get(column)) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(report: Row) -> str:
    options = report["options"]
    about = ", ".join(f"{key} {value}" for key, value in report["about"].items())
    sections = [f"# {options['model']}, {options['dtype']}\n\n{about}\n"]
    sections += [f"## {name}\n\n{table(report[name])}\n" for name in PARTS if name in report]
    return "\n".join(sections)


if __name__ == "__main__":
    main()
