"""The loop's laws: a killed run resumes to the same weights; two processes, or two halves of a batch, make one.

Two processes are two with the whole model each, and two that share one between them.
"""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pydantic import ValidationError
from tests.models import load_checkpoint
from tests.train import world

from slipstream.data.options import DataOptions
from slipstream.data.packs import Clip, Pack, PackKind, write_pack
from slipstream.data.sampler import TokenSampler
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.text import Tokenizer
from slipstream.nn.lm import LM
from slipstream.train import precision
from slipstream.train.launch import run_lm
from slipstream.train.loop import Trainer
from slipstream.train.lora import add_lora
from slipstream.train.options import LMRun, LoraOptions, LossOptions, ModelOptions, RunOptions
from slipstream.train.tasks import TextTask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.base_folder(tmp_path_factory.mktemp("world"))


def options(out: Path, **changes: object) -> RunOptions:
    given = {"out": out, "steps": 6, "rows": 4, "log_every": 2} | changes
    return RunOptions.model_validate(given)


def trainer(folder: Path, run: RunOptions) -> Trainer:
    torch.manual_seed(3)
    rows = world.rows(4.0, {"chords": 1.0})
    sampler = TokenSampler([Pack(folder / "pack")], Tokenizer(folder / "tokenizer.model"), rows)
    return Trainer(TextTask(LM(world.config().lm), sampler, LossOptions(), 0.2), run, lambda line: None)


def weights(path: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["weights"]
    return loaded


@pytest.mark.parametrize(("dtype", "optimizer"), [("float32", "adamw"), ("bfloat16", "muon")])
def test_a_killed_run_resumes_to_the_same_weights(folder: Path, tmp_path: Path, dtype: str, optimizer: str) -> None:
    kind = {"dtype": dtype, "optimizer": optimizer}
    whole = weights(trainer(folder, options(tmp_path / "whole", **kind)).run())
    world.kill_at(4, trainer(folder, options(tmp_path / "killed", checkpoint_every=3, **kind)))
    again = trainer(folder, options(tmp_path / "killed", **kind))
    assert again.step == 3
    resumed = weights(again.run())
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_file_that_is_no_checkpoint_is_named(folder: Path, tmp_path: Path) -> None:
    path = trainer(folder, options(tmp_path, steps=1)).run()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read: resume from a copy"):
        trainer(folder, options(tmp_path, steps=2))
    torch.save({"model": 1}, path)
    with pytest.raises(CheckpointError, match=r"last\.pt is no checkpoint of a training run"):
        trainer(folder, options(tmp_path, steps=2))


def test_weights_that_do_not_learn_any_more_stay_in_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    name = "text_linear.weight"
    learned = weights(trainer(folder, options(tmp_path, steps=2)).run())
    for steps in (3, 4):
        again = weights(trainer(folder, options(tmp_path, steps=steps, rates={"text_linear.*": 0.0})).run())
        assert torch.equal(again[name], learned[name])
        assert not torch.equal(again["text_emb.weight"], learned["text_emb.weight"])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_that_begin_to_learn_start_from_their_previous_values(
    folder: Path, tmp_path: Path, optimizer: str
) -> None:
    kind = {"optimizer": optimizer, "average": 0.5}
    name = "transformer.layers.0.ffn.linear_in.weight"
    kept = trainer(folder, options(tmp_path, steps=2, rates={"*.layers.*": 0.0}, **kind))
    before = kept.task.module.state_dict()[name].clone()
    assert name not in weights(kept.run())
    again = trainer(folder, options(tmp_path, steps=3, **kind))
    assert again.step == 2
    assert torch.equal(again.weights.masters[name], before)
    assert not torch.equal(weights(again.run())[name], before)


@pytest.mark.parametrize(("before", "after"), [("adamw", "muon"), ("muon", "adamw")])
def test_another_optimizer_is_refused(folder: Path, tmp_path: Path, before: str, after: str) -> None:
    trainer(folder, options(tmp_path, steps=1, optimizer=before)).run()
    with pytest.raises(ConfigError, match=f'= "{after}", but the run .* with "{before}".*: set .* = "{before}"'):
        trainer(folder, options(tmp_path, steps=2, optimizer=after))


def test_two_halves_of_a_batch_make_one(folder: Path, tmp_path: Path) -> None:
    whole = weights(trainer(folder, options(tmp_path / "whole")).run())
    halves = weights(trainer(folder, options(tmp_path / "halves", accumulate=2)).run())
    _assert_close(whole, halves)


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_processes_make_one(folder: Path, tmp_path: Path, two_processes: Path, kind: str) -> None:
    whole = weights(trainer(folder, options(tmp_path / "whole")).run())
    _assert_close(whole, weights(two_processes / kind / "last.pt"))


def test_shards_compute_in_bfloat16_as_whole_weights_do(two_processes: Path) -> None:
    whole, sharded = (weights(two_processes / f"{kind}-bfloat16" / "last.pt") for kind in ("replicated", "sharded"))
    assert all(tensor.dtype == torch.float32 for tensor in sharded.values())
    _assert_close(whole, sharded, within=2e-4)  # bfloat16 products round differently from one kind of CPU to another


def test_processes_compute_in_the_type_of_the_first(two_processes: Path) -> None:
    chosen = [(two_processes / f"chosen-{rank}").read_text(encoding="utf-8") for rank in range(2)]
    assert chosen == ["bfloat16 bfloat16"] * 2


def test_a_killed_sharded_run_resumes_with_any_number_of_processes(
    folder: Path, tmp_path: Path, two_processes: Path
) -> None:
    whole = weights(two_processes / "sharded" / "last.pt")
    resumed = weights(two_processes / "resumed" / "last.pt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    shutil.copytree(two_processes / "killed", tmp_path / "alone")
    alone = trainer(folder, options(tmp_path / "alone"))
    assert alone.step == 3
    _assert_close(whole, weights(alone.run()))


def test_a_sharded_run_exports_a_whole_model(folder: Path, two_processes: Path) -> None:
    base, made = load_checkpoint(folder / "base"), load_checkpoint(two_processes / "adapted" / "model")
    adapters = weights(two_processes / "adapted" / "last.pt")
    name = "transformer.layers.1.ffn.linear_in"
    update = 2.0 * adapters[f"{name}.up.weight"] @ adapters[f"{name}.down.weight"]
    before, after = (torch.from_numpy(c.lm[f"{name}.weight"].astype("float32")) for c in (base, made))
    assert update.any()
    torch.testing.assert_close(after, before + update, rtol=2**-8, atol=1e-6)
    assert np.array_equal(base.lm["text_emb.weight"], made.lm["text_emb.weight"])


def test_muon_refuses_shards(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="muon orthogonalises whole matrices, which shard cuts up"):
        options(tmp_path, shard=True, optimizer="muon")


def test_adapters_learn_with_bfloat16_weights_and_are_all_that_is_saved(folder: Path, tmp_path: Path) -> None:
    def adapted(steps: int) -> Trainer:
        torch.manual_seed(3)
        lm = LM(world.config().lm)
        add_lora(lm, LoraOptions(rank=4))
        sampler = TokenSampler(
            [Pack(folder / "pack")], Tokenizer(folder / "tokenizer.model"), world.rows(4.0, {"chords": 1.0})
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
    with pytest.raises(CheckpointError, match=r"of another model: text_linear\.weight are not there"):
        trainer(folder, run)
    state["weights"]["text_linear.weight"] = torch.zeros(3, 3)
    torch.save(state, path)
    with pytest.raises(
        CheckpointError, match=r"of another model: text_linear\.weight are not there, or of another shape"
    ):
        trainer(folder, run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_step_and_resumes_to_the_same_weights(
    folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    whole = weights(trainer(folder, options(tmp_path / "whole")).run())
    before = signal.getsignal(number)
    said: list[str] = []
    run = trainer(folder, options(tmp_path / "stopped"))
    run.report = said.append
    draw = run.task.batch

    def interrupted(first_row: int, rows: int) -> object:
        if first_row == 8:
            signal.raise_signal(number)
        return draw(first_row, rows)

    def now(draw: Callable[[object], object], orders: Iterator[object], depth: int, workers: int) -> Iterator[object]:
        return (draw(order) for order in orders)

    with patch("slipstream.train.loop.prefetch", now):
        run.task.batch = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            run.run()
    assert said[-1].endswith("is of step 3; the same command resumes from there")
    assert signal.getsignal(number) is before
    again = trainer(folder, options(tmp_path / "stopped"))
    assert again.step == 3
    resumed = weights(again.run())
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_finished_run_reports_it(folder: Path, tmp_path: Path) -> None:
    trainer(folder, options(tmp_path, steps=2)).run()
    again, said = trainer(folder, options(tmp_path, steps=2)), []
    again.report = said.append
    again.run()
    assert "this run has finished its 2 steps" in said[-1]


def test_rows_must_divide_among_processes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rows=4 must be a multiple"):
        trainer(folder, options(tmp_path, accumulate=3))


@pytest.mark.parametrize(("width", "rate"), [(2, 12.5), (4, 25.0)])
def test_tokens_of_another_codec_are_refused(folder: Path, tmp_path: Path, width: int, rate: float) -> None:
    clip = Clip(0, 0, "one", "en", "chords", "s", (("one", 0.1, 0.4),))
    kind = PackKind("tokens", width, rate, (0.0,) * width)
    write_pack(tmp_path / "pack", kind, [(np.zeros((30, width)), clip)])
    data = DataOptions(packs=(tmp_path / "pack",), weights={"chords": 1.0}, seconds=4.0)
    run = LMRun(run=options(tmp_path / "run"), model=ModelOptions(base=str(folder / "base")), data=data)
    with pytest.raises(ConfigError, match=rf"hold {width} codebooks at {rate:g} Hz, the model reads 4 at 12.5 Hz"):
        run_lm(run, lambda line: None)


@pytest.mark.parametrize("held_out", [False, True])
def test_tokens_that_the_model_does_not_have_are_refused_at_the_start(
    folder: Path, tmp_path: Path, held_out: bool
) -> None:
    clip = Clip(0, 0, "one", "en", "chords", "s", (("one", 0.1, 0.4),))
    write_pack(tmp_path / "pack", PackKind("tokens", 4, 12.5, (0.0,) * 4), [(np.full((60, 4), 70), clip)])
    data: dict[str, object] = {"packs": [tmp_path / "pack"], "weights": {"chords": 1.0}, "seconds": 4.0}
    if held_out:
        data |= {"packs": [folder / "pack"], "valid": {"packs": [tmp_path / "pack"]}}
    run = {"run": options(tmp_path / "run"), "model": {"base": str(folder / "base")}, "data": data}
    with pytest.raises(ConfigError, match=r"pack: row 0 \('one'\) has the token 70 in codebook 0"):
        run_lm(LMRun.model_validate(run), lambda line: None)


@pytest.mark.parametrize(
    ("name", "content"), [("pack.json", "{"), ("pack.json", '{"kind": "tokens"}'), ("clips.jsonl", "{}")]
)
def test_a_damaged_pack_is_named(folder: Path, tmp_path: Path, name: str, content: str) -> None:
    shutil.copytree(folder / "pack", tmp_path / "pack")
    (tmp_path / "pack" / name).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="pack is a damaged pack"):
        Pack(tmp_path / "pack")


@pytest.fixture(scope="module")
def two_processes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the runs of `_process`, which cost the start of two processes once."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_process, args=(folder, out, port), nprocs=2)
    return out


def _process(rank: int, folder: Path, out: Path, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for kind, shard in (("replicated", False), ("sharded", True)):
        trainer(folder, options(out / kind, shard=shard)).run()
        half = trainer(folder, options(out / f"{kind}-bfloat16", shard=shard, dtype="bfloat16"))
        half.task.module.transformer.checkpointing = True
        half.run()
    world.kill_at(4, trainer(folder, options(out / "killed", shard=True, checkpoint_every=3)))
    if rank == 0:
        shutil.copytree(out / "killed", out / "resumed")
    dist.barrier()
    trainer(folder, options(out / "resumed", shard=True)).run()
    with patch.object(precision, "fastest", lambda device: ((torch.bfloat16, torch.float32)[rank], "")):
        chosen = precision.settled(options(out / "new", dtype="auto"), lambda line: None).dtype
        products = precision.name_of(precision.agreed("cpu"))
    (out / f"chosen-{rank}").write_text(f"{chosen} {products}", encoding="utf-8")
    data = DataOptions(packs=(folder / "pack",), weights={"chords": 1.0}, seconds=4.0)
    run = options(out / "adapted", shard=True, learning_rate=0.1, dtype="bfloat16")
    adapted = LMRun(run=run, model=ModelOptions(base=str(folder / "base")), data=data, lora=LoraOptions(rank=4))
    run_lm(adapted, lambda line: None)
    dist.destroy_process_group()


def _assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], within: float = 2e-5) -> None:
    worst = max(float((left[name] - right[name]).abs().max()) for name in left)
    assert worst < within, worst
