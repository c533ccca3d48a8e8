"""Eight utterances, memorised, are transcribed word for word through the runner that streams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train import world

from slipstream.arrays import FloatArray
from slipstream.backends.torch.runner import TorchRunner
from slipstream.data.sampler import TokenSampler
from slipstream.events import Word
from slipstream.model.config import STTConfig
from slipstream.model.text import Tokenizer, WordDecoder
from slipstream.nn.lm import LM
from slipstream.nn.mimi import Mimi
from slipstream.train.loop import train
from slipstream.train.options import LossOptions, RunOptions
from slipstream.train.tasks import TextTask


@pytest.mark.parametrize("delays", [(6, 6), (4, 12)], ids=["fixed", "drawn"])
def test_eight_utterances_are_memorised(tmp_path: Path, delays: tuple[int, int]) -> None:
    spoken = world.utterances()
    codec = world.codec([samples for samples, _ in spoken])
    tokenizer = Tokenizer(world.tokenizer(tmp_path))
    config = world.config(conditioned=delays[0] != delays[1])
    torch.manual_seed(0)
    lm = LM(config.lm)
    pack = world.token_pack(tmp_path / "pack", codec, spoken)
    sampler = TokenSampler([pack], tokenizer, world.rows(6.0, {"chords": 1.0}, delays, text_mask=0.2))
    options = RunOptions(out=tmp_path / "run", steps=1000, rows=8, learning_rate=3e-3, checkpoint_every=10_000)
    train(TextTask(lm, sampler, LossOptions(), 0.0), options, lambda line: None)
    for delay in sorted({*delays, sum(delays) // 2}):
        conditions = {"delay": delay / 12.5} if config.lm.conditioners else {}
        delayed = config.model_copy(update={"delay_frames": delay, "condition_values": conditions})
        results = [(_transcribe(delayed, codec, lm, tokenizer, samples), words) for samples, words in spoken]
        right = [(written, words) for written, words in results if [w.text for w in written] == [w.text for w in words]]
        # Rounding differs between kinds of CPU, so the last utterance is not learnt at the same step everywhere.
        assert len(right) >= len(spoken) - 1
        for written, words in right:
            assert np.allclose([w.start for w in written], [w.start for w in words], atol=0.081)


def _transcribe(config: STTConfig, codec: Mimi, lm: LM, tokenizer: Tokenizer, samples: FloatArray) -> list[Word]:
    runner = TorchRunner(config, codec, lm)
    silence = np.zeros((config.delay_frames + 6) * runner.frame_samples, np.float32)
    frames = np.concatenate([samples, np.zeros(-len(samples) % runner.frame_samples, np.float32), silence])
    decoder = WordDecoder(tokenizer, config.delay_frames, partials=False)
    events = []
    for frame in frames.reshape(-1, 1, runner.frame_samples):
        output = runner.step(frame, np.array([True]))
        events += decoder.push(int(output.token_B[0]), float(output.logprob_B[0]))
    return [event for event in [*events, *decoder.flush()] if isinstance(event, Word)]
