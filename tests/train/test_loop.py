"""The loop's laws: a killed run goes on to the same weights; two processes, or two halves of a batch, make one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests.train import world

from slipstream.errors import CheckpointError
from slipstream.text import Tokenizer
from slipstream.torch_model.lm import LM
from slipstream.train.features import Pack
from slipstream.train.loop import Trainer
from slipstream.train.lora import add_lora
from slipstream.train.options import LossOptions, RunOptions
from slipstream.train.sampler import RowOptions, TokenSampler
from slipstream.train.tasks import TextTask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    world.tokenizer(folder)
    spoken = world.utterances(4)
    world.token_pack(folder / "pack", world.codec([samples for samples, _ in spoken]), spoken)
    return folder


def options(out: Path, **changes: object) -> RunOptions:
    given = {"out": out, "steps": 6, "rows": 4, "log_every": 2} | changes
    return RunOptions.model_validate(given)


def trainer(folder: Path, run: RunOptions) -> Trainer:
    torch.manual_seed(3)
    rows = RowOptions(4.0, {"chords": 1.0}, (6, 6))
    sampler = TokenSampler([Pack(folder / "pack")], Tokenizer(folder / "tokenizer.model"), rows)
    return Trainer(TextTask(LM(world.config().lm), sampler, LossOptions(), 0.2), run, lambda line: None)


def weights(path: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["weights"]
    return loaded


@pytest.mark.parametrize(("dtype", "optimizer"), [("float32", "adamw"), ("bfloat16", "muon")])
def test_a_killed_run_goes_on_to_the_same_weights(folder: Path, tmp_path: Path, dtype: str, optimizer: str) -> None:
    kind = {"dtype": dtype, "optimizer": optimizer}
    whole = weights(trainer(folder, options(tmp_path / "whole", **kind)).run())
    killed = trainer(folder, options(tmp_path / "killed", checkpoint_every=3, **kind))
    train_step, steps = killed._train_step, []

    def step_or_die(*arguments: object) -> dict[str, float]:
        if len(steps) == 4:
            raise KeyboardInterrupt
        steps.append(None)
        return train_step(*arguments)  # type: ignore[arg-type]

    killed._train_step = step_or_die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    again = trainer(folder, options(tmp_path / "killed", **kind))
    assert again.step == 3
    resumed = weights(again.run())
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_two_halves_of_a_batch_make_one(folder: Path, tmp_path: Path) -> None:
    whole = weights(trainer(folder, options(tmp_path / "whole")).run())
    halves = weights(trainer(folder, options(tmp_path / "halves", accumulate=2)).run())
    _assert_close(whole, halves)


def test_two_processes_make_one(folder: Path, tmp_path: Path) -> None:
    whole = weights(trainer(folder, options(tmp_path / "whole")).run())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_process, args=(folder, tmp_path / "two", port), nprocs=2)
    _assert_close(whole, weights(tmp_path / "two" / "last.pt"))


def test_adapters_learn_beside_bfloat16_weights_and_are_all_that_is_saved(folder: Path, tmp_path: Path) -> None:
    def adapted(steps: int) -> Trainer:
        torch.manual_seed(3)
        lm = LM(world.config().lm)
        add_lora(lm, 4, 2.0)
        sampler = TokenSampler(
            [Pack(folder / "pack")], Tokenizer(folder / "tokenizer.model"), RowOptions(4.0, {"chords": 1.0}, (6, 6))
        )
        run = options(tmp_path, dtype="bfloat16", steps=steps)
        return Trainer(TextTask(lm, sampler, LossOptions(), 0.0), run, lambda line: None)

    first = adapted(3)
    assert all(parameter.dtype == torch.bfloat16 for parameter in first.task.module.parameters())
    saved = weights(first.run())
    assert saved
    assert all(".down." in name or ".up." in name for name in saved)
    again = adapted(6)
    assert again.step == 3
    again.run()


def test_a_checkpoint_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    run = options(tmp_path, steps=1)
    path = trainer(folder, run).run()
    state = torch.load(path, weights_only=True)
    del state["weights"]["text_linear.weight"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"of another model: it lacks text_linear\.weight"):
        trainer(folder, run)


def test_rows_must_divide_among_processes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rows=4 must be a multiple"):
        trainer(folder, options(tmp_path, accumulate=3))


def _process(rank: int, folder: Path, out: Path, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    trainer(folder, options(out)).run()
    dist.destroy_process_group()


def _assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    worst = max(float((left[name] - right[name]).abs().max()) for name in left)
    assert worst < 2e-5, worst
