"""Milliseconds per frame of the PyTorch codec and LM, compared with the `moshi` package in the same run.

    python -m benchmarks.step --model kyutai/stt-1b-en_fr --slots 1 4 16
    python -m benchmarks.step --model kyutai/stt-1b-en_fr --slots 1 --dtype bfloat16

The weights are constant: the time of a step does not depend on them. The two packages take turns of five steps, so that
other load affects both. The times are medians over all steps, and the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial

os.environ.setdefault("NO_TORCH_COMPILE", "1")  # without this, moshi compiles its norms on CUDA

import torch
from benchmarks.common import Step, moshi_lm_arguments, race

from slipstream.checkpoints.mimi import dump_codec
from slipstream.checkpoints.presets import PRESETS
from slipstream.model.config import STTConfig
from slipstream.nn.lm import LM
from slipstream.nn.mimi import Mimi
from slipstream.nn.state import State, commit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(PRESETS), default="kyutai/stt-1b-en_fr")
    parser.add_argument("--slots", type=int, nargs="+", default=[1])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the LM")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each")
    parser.add_argument("--parts", nargs="+", choices=["codec", "lm"], default=["codec", "lm"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    config, device, dtype = PRESETS[options.model], torch.device(options.device), getattr(torch, options.dtype)
    synchronise = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    rows = []
    with torch.inference_mode():
        for part in options.parts:
            makers = (our_codec, their_codec) if part == "codec" else (our_lm, their_lm)
            ours, theirs = (make(config, device, dtype) for make in makers)
            for slots in options.slots:
                times = race(ours(slots), theirs(slots), options.steps, synchronise)
                median = [statistics.median(t) * 1000 for t in times]
                rows.append({"part": part, "slots": slots, "slipstream_ms": median[0], "moshi_ms": median[1]})
                rows[-1]["ratio"] = median[1] / median[0]
            del ours, theirs
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{options.model}, {options.dtype}, {options.device}, {torch.get_num_threads()} threads, ms per frame")
    print("part   slots  slipstream   moshi  moshi/slipstream")
    for row in rows:
        print("{part:5}  {slots:5}  {slipstream_ms:10.2f}  {moshi_ms:6.2f}  {ratio:.2f}".format(**row))


def fill(module: torch.nn.Module) -> None:
    """Numbers of an ordinary size: denormal ones would slow the arithmetic."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.fill_(0.01)


def our_codec(config: STTConfig, device: torch.device, dtype: torch.dtype) -> Callable[[int], Step]:
    codec = Mimi(config.codec).to(device).eval()
    fill(codec)

    def start(slots: int) -> Step:
        pcm, active = torch.randn(slots, config.codec.frame_samples, device=device), ones(slots, device)
        state: State = codec.encoder_state(slots)

        def step() -> None:
            _, update = codec.encode(pcm, state, config.lm.num_codebooks)
            assert update is not None
            commit(state, update, active)

        return step

    return start


def our_lm(config: STTConfig, device: torch.device, dtype: torch.dtype) -> Callable[[int], Step]:
    with torch.device("meta"):
        lm = LM(config.lm).to(dtype).eval()
    lm = lm.to_empty(device=device)
    fill(lm)

    def start(slots: int) -> Step:
        text = torch.full((slots, 1), 3, device=device)
        codes = torch.randint(0, config.lm.audio_vocab, (slots, config.lm.num_codebooks, 1), device=device)
        state: State = lm.init_state(slots)
        active = ones(slots, device)

        def step() -> None:
            hidden, update = lm(text, codes, state)
            lm.text_logits(hidden).argmax(dim=-1)
            assert update is not None
            commit(state, update, active)

        return step

    return start


def their_codec(config: STTConfig, device: torch.device, dtype: torch.dtype) -> Callable[[int], Step]:
    from moshi.models import loaders

    codec = loaders.get_mimi(None, dump_codec(config.codec), device=device, num_codebooks=config.lm.num_codebooks)
    for parameter in codec.parameters():
        parameter.requires_grad_(False)
    fill(codec)
    streams = Streams(codec)

    def start(slots: int) -> Step:
        streams.restart(slots)
        pcm = torch.randn(slots, 1, config.codec.frame_samples, device=device)
        return lambda: codec.encode(pcm)

    return start


def their_lm(config: STTConfig, device: torch.device, dtype: torch.dtype) -> Callable[[int], Step]:
    from moshi.models import LMGen, loaders

    # On the meta device first: its own initialisation of a billion weights takes minutes.
    lm = loaders.get_moshi_lm(None, moshi_lm_arguments(config), device="meta", dtype=dtype)
    lm = lm.to_empty(device=device)
    for parameter in lm.parameters():
        parameter.requires_grad_(False)
    fill(lm)
    generator = LMGen(lm, use_sampling=False)
    streams = Streams(generator)

    def start(slots: int) -> Step:
        streams.restart(slots)
        codes = torch.randint(0, config.lm.audio_vocab, (slots, config.lm.num_codebooks, 1), device=device)
        return lambda: generator.step(codes)

    return start


class Streams:
    """The reference keeps its streaming state inside its modules: leave it before entering it at another size."""

    def __init__(self, module: object) -> None:
        self.module = module
        self.context: Iterator[object] | None = None

    def restart(self, slots: int) -> None:
        if self.context is not None:
            self.context.__exit__(None, None, None)  # type: ignore[attr-defined]
        self.context = self.module.streaming(slots)  # type: ignore[attr-defined]
        self.context.__enter__()  # type: ignore[attr-defined]


def ones(slots: int, device: torch.device) -> torch.Tensor:
    return torch.ones(slots, dtype=torch.bool, device=device)


if __name__ == "__main__":
    main()
