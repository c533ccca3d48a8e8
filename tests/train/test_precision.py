"""`run.dtype = "auto"` takes the faster type, and a run keeps the type that it began with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.train import world

from slipstream.data.packs import Pack
from slipstream.data.sampler import TokenSampler
from slipstream.model.text import Tokenizer
from slipstream.nn.lm import LM
from slipstream.train import precision
from slipstream.train.launch import run_lm
from slipstream.train.loop import Trainer
from slipstream.train.muon import Muon
from slipstream.train.options import LMRun, LossOptions, RunOptions
from slipstream.train.precision import fastest, product_seconds
from slipstream.train.tasks import TextTask

Cpu = Callable[..., list[torch.dtype]]


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cpu]:
    """Make the CPU one with or without AMX and AVX-512 BF16, whose products take these seconds.

    Returns the list of the products that are timed.
    """

    def become(amx: bool = False, avx512: bool = True, full: float = 1.0, half: float = 1.0) -> list[torch.dtype]:
        timed: list[torch.dtype] = []

        def seconds(dtype: torch.dtype) -> float:
            timed.append(dtype)
            return half if dtype == torch.bfloat16 else full

        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
        monkeypatch.setattr(precision, "product_seconds", seconds)
        fastest.cache_clear()
        return timed

    yield become
    fastest.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.base_folder(tmp_path_factory.mktemp("world"))


def trainer(folder: Path, out: Path, said: list[str], **changes: object) -> Trainer:
    torch.manual_seed(3)
    rows = world.rows(4.0, {"chords": 1.0})
    sampler = TokenSampler([Pack(folder / "pack")], Tokenizer(folder / "tokenizer.model"), rows)
    given = {"out": out, "steps": 2, "rows": 2, "dtype": "auto", "trackers": ()} | changes
    task = TextTask(LM(world.config().lm), sampler, LossOptions(), 0.2)
    return Trainer(task, RunOptions.model_validate(given), said.append)


def dtype(run: Trainer) -> torch.dtype:
    return next(run.task.module.parameters()).dtype


@pytest.mark.parametrize(
    ("given", "expected", "why", "timed"),
    [
        ({"amx": True, "full": 1.0, "half": 2.0}, torch.bfloat16, "AMX", 0),
        ({"avx512": False, "full": 2.0, "half": 1.0}, torch.float32, "neither", 0),
        ({"full": 0.002, "half": 0.004}, torch.float32, "2 ms in float32, 4 ms in bfloat16", 2),
        ({"full": 0.004, "half": 0.001}, torch.bfloat16, "4 ms in float32, 1 ms in bfloat16", 2),
        ({"full": 0.001, "half": 0.001}, torch.float32, "1 ms in float32, 1 ms in bfloat16", 2),
    ],
)
def test_a_cpu_with_avx512_alone_is_timed_once(
    cpu: Cpu, given: dict[str, float], expected: torch.dtype, why: str, timed: int
) -> None:
    products = cpu(**given)
    found, reason = fastest("cpu")
    assert found == expected
    assert why in reason
    assert fastest("cpu") == (found, reason)
    assert len(products) == timed


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_accelerators_take_bfloat16_untimed(cpu: Cpu, device: str) -> None:
    products = cpu(full=1.0, half=2.0)
    assert fastest(device) == (torch.bfloat16, f"on {device.partition(':')[0]}")
    assert not products


def test_timing_a_product_leaves_draws_and_threads_as_they_are() -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    assert product_seconds(torch.bfloat16) >= 0
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("full", "half", "name"), [(1.0, 2.0, "float32"), (2.0, 1.0, "bfloat16")])
def test_the_first_line_of_a_run_has_the_type(
    cpu: Cpu, folder: Path, tmp_path: Path, full: float, half: float, name: str
) -> None:
    cpu(full=full, half=half)
    run = {"out": tmp_path, "steps": 1, "rows": 2, "dtype": "auto", "trackers": []}
    data = {"packs": [folder / "pack"], "weights": {"chords": 1.0}, "seconds": 4.0}
    said: list[str] = []
    run_lm(LMRun.model_validate({"run": run, "model": {"base": str(folder / "base")}, "data": data}), said.append)
    assert said[0].startswith(f'run.dtype = "auto": {name} (a product takes')
    assert sum("run.dtype" in line for line in said) == 1
    assert torch.load(tmp_path / "last.pt", weights_only=True)["dtype"] == name


@pytest.mark.parametrize(("full", "half"), [(1.0, 2.0), (2.0, 1.0)])
def test_a_run_that_resumes_keeps_its_type(cpu: Cpu, folder: Path, tmp_path: Path, full: float, half: float) -> None:
    cpu(full=full, half=half)
    first = trainer(folder, tmp_path, [], optimizer="muon")
    first.run()
    cpu(full=half, half=full)
    said: list[str] = []
    again = trainer(folder, tmp_path, said, optimizer="muon", steps=3)
    assert dtype(again) == dtype(first) == (torch.float32 if full < half else torch.bfloat16)
    assert said[0] == f'run.dtype = "auto": {again.options.dtype} (as in {tmp_path / "last.pt"})'
    for run in (first, again):
        assert {g["dtype"] for p in run.optimizer.parts if isinstance(p, Muon) for g in p.param_groups} == {dtype(run)}
    again.run()


def test_a_type_that_is_given_overrides_that_of_the_checkpoint(cpu: Cpu, folder: Path, tmp_path: Path) -> None:
    cpu(full=2.0, half=1.0)
    trainer(folder, tmp_path, []).run()
    said: list[str] = []
    again = trainer(folder, tmp_path, said, dtype="float32", steps=3)
    assert dtype(again) == torch.float32
    assert said == [f"{tmp_path / 'last.pt'}: going on from step 2, in float32 instead of bfloat16"]
    again.run()


def test_a_checkpoint_without_a_type_gets_the_faster_one(cpu: Cpu, folder: Path, tmp_path: Path) -> None:
    cpu(full=1.0, half=2.0)
    trainer(folder, tmp_path, [], optimizer="muon").run()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    del state["dtype"]
    for group in state["optimizer"][0]["param_groups"]:
        del group["dtype"]
    torch.save(state, tmp_path / "last.pt")
    cpu(full=2.0, half=1.0)
    again = trainer(folder, tmp_path, [], optimizer="muon", steps=3)
    assert dtype(again) == torch.bfloat16
    again.run()
