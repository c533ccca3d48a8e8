"""Transcribe a file, with the command line and the names of `moshi.run_inference`.

python -m slipstream.moshi.run_inference --hf-repo kyutai/stt-1b-en_fr-candle --device cpu audio.mp3
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from slipstream.errors import SlipstreamError
from slipstream.moshi.client_utils import AnyPrinter, Printer, RawPrinter, log

if TYPE_CHECKING:  # torch is imported where it is used, after `--help`
    import sentencepiece
    import torch
    from torch import Tensor

    from slipstream.moshi.conditioners import ConditionTensors
    from slipstream.moshi.models import LMModel, MimiModel, loaders

EXTRA_SECONDS = 1.0
"""Silence after the audio, in addition to the delay, so that the last word is complete."""


def get_condition_tensors(model_type: str, lm: LMModel, batch_size: int, cfg_coef: float = 1.0) -> ConditionTensors:
    """The conditions of `batch_size` streams as the checkpoint's config sets them; empty for a model without any."""
    from slipstream.moshi.conditioners import ConditionAttributes

    if model_type != "stt" or cfg_coef != 1.0:
        raise ValueError(f"model_type={model_type!r}, cfg_coef={cfg_coef}: expected 'stt' and 1, for speech to text")
    provider = lm.condition_provider
    if provider is None:
        return {}
    return provider.prepare_and_provide([ConditionAttributes(text=dict(lm.condition_values))] * batch_size)


class InferenceState:
    """A model that transcribes a batch of whole recordings.

    Args:
        checkpoint_info: The checkpoint, whose configuration gives the delay and the silence prefix.
        mimi, text_tokenizer, lm: Its parts.
        batch_size: Number of recordings.
        cfg_coef: Must be 1, as for every speech-to-text model.
        device: Where the parts are.
        **kwargs: Further arguments of `LMGen`.
    """

    def __init__(
        self,
        checkpoint_info: loaders.CheckpointInfo,
        mimi: MimiModel,
        text_tokenizer: sentencepiece.SentencePieceProcessor,
        lm: LMModel,
        batch_size: int,
        cfg_coef: float,
        device: str | torch.device,
        **kwargs: Any,
    ) -> None:
        from slipstream.moshi.models import LMGen

        self.checkpoint_info = checkpoint_info
        self.model_type = checkpoint_info.model_type
        self.mimi, self.text_tokenizer = mimi, text_tokenizer
        conditions = get_condition_tensors(self.model_type, lm, batch_size, cfg_coef)
        self.lm_gen = LMGen(lm, condition_tensors=conditions, **kwargs)
        self.device, self.batch_size, self.frame_size = device, batch_size, mimi.frame_size
        mimi.streaming_forever(batch_size)
        self.lm_gen.streaming_forever(batch_size)
        self.printer: AnyPrinter = Printer() if sys.stdout.isatty() else RawPrinter()

    def run(self, in_pcms: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Transcribe `in_pcms` (`[B, 1, samples]`, 24 kHz) and print the text of the first recording.

        Returns:
            An empty list: a speech-to-text model generates no audio.
        """
        import torch

        with torch.no_grad():
            self._run(in_pcms)
        return []

    def _run(self, in_pcms: Tensor) -> None:
        from torch.nn.functional import pad

        from slipstream.model.config import PAD_ID, WORD_ID

        stt = self.checkpoint_info.stt_config
        before = stt.get("audio_silence_prefix_seconds", 0.0)
        after = stt.get("audio_delay_seconds", 0.0) + EXTRA_SECONDS
        rate = self.mimi.sample_rate
        padded = pad(in_pcms, (int(before * rate), int(after * rate)))
        frames = padded.shape[-1] // self.frame_size
        self.printer.print_header()
        for i, frame in enumerate(padded[..., : frames * self.frame_size].split(self.frame_size, dim=-1)):
            codes = self.mimi.encode(frame)
            if i == 0:
                self.lm_gen.step(codes)  # the first step reads the initial tokens instead of its codes
            tokens = self.lm_gen.step(codes)
            assert tokens is not None, "the streams of a speech-to-text model have no delays"
            token = int(tokens[0, 0])
            if token not in (WORD_ID, PAD_ID):
                self.printer.print_token(self.text_tokenizer.id_to_piece(token).replace("\u2581", " "))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slipstream.moshi.run_inference", description="Transcribe a file.")
    parser.add_argument("--tokenizer", help="path to the tokenizer")
    parser.add_argument("--moshi-weight", help="path to the LM's weights")
    parser.add_argument("--mimi-weight", help="path to the codec's weights")
    parser.add_argument("--hf-repo", default="kyutai/stt-1b-en_fr-candle", help="repository or folder of the model")
    parser.add_argument("--batch-size", type=int, default=1, help="accepted and unused: one file is one stream")
    parser.add_argument("--device", default="cuda", help="device to run on (default: cuda)")
    parser.add_argument("--half", action="store_const", const="float16", default="bfloat16", dest="dtype")
    parser.add_argument("--config", "--lm-config", dest="config", help="path to the configuration")
    parser.add_argument("--cfg-coef", type=float, default=1.0, help="must be 1 for speech to text")
    parser.add_argument("infile", help="audio file, in any format that FFmpeg reads")
    parser.add_argument("outfile", nargs="?", default="", help="accepted and unused: no audio is generated")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    args = _parser().parse_args(argv)
    import torch

    from slipstream.audio import load
    from slipstream.moshi.models import loaders

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        log("error", f"--device {args.device}: this installation of torch has no CUDA device; use --device cpu")
        return 1
    try:
        info = loaders.CheckpointInfo.from_hf_repo(
            args.hf_repo, args.moshi_weight, args.mimi_weight, args.tokenizer, args.config
        )
        mimi = info.get_mimi(device=args.device)
        lm = info.get_moshi(device=args.device, dtype=getattr(torch, args.dtype))
        in_pcm = torch.from_numpy(load(args.infile, mimi.sample_rate)).to(args.device)[None, None]
    except SlipstreamError as error:
        log("error", str(error))
        return 1
    options = info.lm_gen_config
    state = InferenceState(info, mimi, info.get_text_tokenizer(), lm, 1, args.cfg_coef, args.device, **options)
    state.run(in_pcm)
    print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
