"""What a model learns and forgets in a short run on tokens: text loss and tokens named right, before and after.

    slipstream data pack data/all.jsonl --model tiny --out data/pack
    python -m benchmarks.adapt data/pack --tokenizer data/tiny-de.model --learn german --test test-de test-en
    python -m benchmarks.adapt ... --replay replay --base 1

The pack holds all datasets. Tokens are named with the right text before them (teacher forcing), without decoding, so
that a comparison costs a minute. Error rates of a real run: `slipstream evaluate`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from slipstream.bundle import ModelBundle
from slipstream.data.options import DataOptions
from slipstream.data.packs import Pack
from slipstream.data.rows import RowOptions
from slipstream.data.sampler import TokenBatch, TokenSampler
from slipstream.model.config import PAD_ID
from slipstream.model.text import Tokenizer
from slipstream.train.keep import old_lm
from slipstream.train.loop import Trainer
from slipstream.train.lora import based_lm
from slipstream.train.model import text_hidden, text_loss
from slipstream.train.options import LMRun, LoraOptions, LossOptions, ModelOptions, RunOptions
from slipstream.train.setup import grown
from slipstream.train.tasks import TextTask
from slipstream.train.vocabulary import Growth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path, nargs="+", help="packs of the model's tokens")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--tokenizer", type=Path, help="a vocabulary that extends the model's")
    parser.add_argument("--learn", required=True, help="the dataset to learn")
    parser.add_argument("--replay", help="a dataset of what the model can do, half as often")
    parser.add_argument("--base", type=float, default=0.0, help="weight of loss.base on it")
    parser.add_argument("--test", nargs="+", default=[], help="datasets to measure on")
    parser.add_argument("--rank", type=int, default=0, help="of adapters; 0 trains the whole LM")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=6.4)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments)), flush=True)


def measure(given: argparse.Namespace) -> dict[str, object]:
    """Train with the given options, and measure before and after."""
    bundle = ModelBundle.resolve(given.model)
    checkpoint, packs = bundle.checkpoint(), [Pack(path) for path in given.pack]
    vocabulary = given.tokenizer or bundle.sources.tokenizer
    growth = Growth(bundle.sources.tokenizer, vocabulary) if given.tokenizer else None
    config, tokenizer = grown(checkpoint.config.lm, growth), Tokenizer(vocabulary)
    weights = {given.learn: 2.0} | ({given.replay: 1.0} if given.replay else {})
    lora = LoraOptions(rank=given.rank) if given.rank else None
    with tempfile.TemporaryDirectory() as folder:
        run = RunOptions(
            out=Path(folder), steps=given.steps, rows=given.rows, learning_rate=given.rate, warmup=0.1, decay=0.6
        )
        loss = LossOptions(base=given.base, pause=0.0)
        data = _data(given, weights, text_mask=0.1)
        options = LMRun(run=run, model=ModelOptions(base=given.model), data=data, loss=loss, lora=lora)
        torch.manual_seed(0)
        lm = based_lm(checkpoint, config, options, growth)
        delay = (checkpoint.config.delay_frames,) * 2
        tests = {
            name: TokenSampler(packs, tokenizer, RowOptions(_data(given, {name: 1.0}), delay)).batch(0, 2 * given.rows)
            for name in given.test
        }
        before = {name: score(lm, batch) for name, batch in tests.items()}
        sampler = TokenSampler(packs, tokenizer, RowOptions(data, delay))
        task = TextTask(lm, sampler, loss, 0.0, old_lm(lm, loss, growth))
        Trainer(task, run, lambda line: None).run()
        after = {name: score(lm, batch) for name, batch in tests.items()}
    settings = {name: getattr(given, name) for name in ("rank", "rate", "steps", "replay", "base")}
    return settings | {"before": before, "after": after}


def _data(given: argparse.Namespace, weights: dict[str, float], text_mask: float = 0.0) -> DataOptions:
    replay = (given.replay,) if given.replay in weights else ()
    return DataOptions(
        packs=tuple(given.pack), weights=weights, seconds=given.seconds, text_mask=text_mask, replay=replay
    )


@torch.no_grad()
def score(lm: torch.nn.Module, batch: TokenBatch) -> dict[str, float]:
    """Nats a frame, and the share of the words' tokens that are the most likely ones."""
    codes = torch.from_numpy(batch.codes_BKT[:, : lm.config.num_codebooks])
    first = torch.full_like(codes[..., :1], lm.config.audio_initial_id)
    audio = lm.audio_emb(torch.cat([first, codes[..., :-1]], dim=-1))
    logits = lm.text_logits(text_hidden(lm, audio, batch.targets, 12.5))
    text, mask = torch.from_numpy(batch.targets.text_BT), torch.from_numpy(batch.targets.mask_BT)
    spoken = (text > PAD_ID) & mask
    right = (logits.argmax(-1) == text)[spoken].float().mean()
    return {"nats": round(float(text_loss(logits, text, mask, 1.0)), 4), "right": round(float(right), 3)}


if __name__ == "__main__":
    main()
