"""Runs that something happens to: kills at any moment, a loss that is not finite, a device that is full."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train import world

from slipstream.data.packs import Pack
from slipstream.data.sampler import TokenSampler
from slipstream.errors import CheckpointError
from slipstream.model.text import Tokenizer
from slipstream.nn.lm import LM
from slipstream.train.loop import Trainer
from slipstream.train.options import LossOptions, RunOptions
from slipstream.train.tasks import TextTask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    world.tokenizer(folder)
    spoken = world.utterances(4)
    world.token_pack(folder / "pack", world.codec([samples for samples, _ in spoken]), spoken)
    return folder


def trainer(folder: Path, out: Path, **changes: object) -> Trainer:
    torch.manual_seed(3)
    sampler = TokenSampler(
        [Pack(folder / "pack")], Tokenizer(folder / "tokenizer.model"), world.rows(4.0, {"chords": 1.0})
    )
    given = {"out": out, "steps": 9, "rows": 4, "log_every": 3, "checkpoint_every": 2, "trackers": ()} | changes
    task = TextTask(LM(world.config().lm), sampler, LossOptions(), 0.2)
    return Trainer(task, RunOptions.model_validate(given), lambda line: None)


def curve(out: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient at each step of the log; a step that was done again counts as it was the last time."""
    lines = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: (line["loss"], line["gradient"]) for line in lines}


class Killed(BaseException):
    pass


def test_a_run_killed_at_random_moments_has_the_same_curve(folder: Path, tmp_path: Path) -> None:
    trainer(folder, tmp_path / "whole").run()
    rng = np.random.default_rng(0)
    kills = 0
    while True:
        run = trainer(folder, tmp_path / "killed")
        left = int(rng.integers(2, 12))

        def perhaps(call: Callable[..., object], run: Trainer = run) -> Callable[..., object]:
            def called(*arguments: object) -> object:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed
                return call(*arguments)

            return called

        run.weights.loss = perhaps(run.weights.loss)  # type: ignore[method-assign]
        run.optimizer.step = perhaps(run.optimizer.step)  # type: ignore[method-assign]
        run.weights.publish = perhaps(run.weights.publish)  # type: ignore[method-assign]
        run._keep = perhaps(run._keep)  # type: ignore[method-assign]
        try:
            run.run()
        except Killed:
            kills += 1
        else:
            break
    assert kills >= 2
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


def test_processes_draw_the_same_rows(folder: Path, tmp_path: Path) -> None:
    trainer(folder, tmp_path / "thread", steps=4).run()
    trainer(folder, tmp_path / "processes", steps=4, workers=2).run()
    assert curve(tmp_path / "processes") == curve(tmp_path / "thread")


def test_a_loss_that_is_not_finite_names_the_step_and_the_rows(folder: Path, tmp_path: Path) -> None:
    run = trainer(folder, tmp_path, accumulate=2)
    loss = run.task.loss

    def broken(batch: object, step: int, progress: float) -> object:
        total, numbers = loss(batch, step, progress)
        broken.calls += 1  # type: ignore[attr-defined]
        return total * (torch.nan if broken.calls == 6 else 1.0), numbers  # type: ignore[attr-defined]

    broken.calls = 0  # type: ignore[attr-defined]
    run.task.loss = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(CheckpointError, match="step 2, rows 10 to 11: the loss is nan"):
        run.run()
    assert trainer(folder, tmp_path).step == 2


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_run_continues_with_half_the_rows_where_memory_is_short(
    folder: Path, tmp_path: Path, error: RuntimeError
) -> None:
    trainer(folder, tmp_path / "whole").run()
    run, said = trainer(folder, tmp_path / "short"), []
    run.report = said.append
    loss, sizes = run.task.loss, []

    def limited(batch: object, step: int, progress: float) -> object:
        sizes.append(len(batch.codes_BKT))  # type: ignore[attr-defined]
        if step >= 3 and sizes[-1] > 2:
            raise error
        return loss(batch, step, progress)  # type: ignore[arg-type]

    run.task.loss = limited  # type: ignore[method-assign, assignment]
    run.run()
    assert sizes == [4, 4, 4, 4, *[2] * 12]
    assert "step 3: out of memory; batches have 2 rows from now on" in said
    for (a, b), (c, d) in zip(curve(tmp_path / "whole").values(), curve(tmp_path / "short").values(), strict=True):
        assert (a, b) == pytest.approx((c, d), rel=1e-3)
    assert trainer(folder, tmp_path / "short").at_once == 2


def test_a_single_row_that_does_not_fit_ends_the_run(folder: Path, tmp_path: Path) -> None:
    run = trainer(folder, tmp_path)

    def full(batch: object, step: int, progress: float) -> object:
        raise MemoryError

    run.task.loss = full  # type: ignore[method-assign, assignment]
    with pytest.raises(CheckpointError, match="out of memory with 1 rows in a batch"):
        run.run()


def test_other_errors_are_raised(folder: Path, tmp_path: Path) -> None:
    run = trainer(folder, tmp_path)

    def wrong(batch: object, step: int, progress: float) -> object:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    run.task.loss = wrong  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="mat1"):
        run.run()


def test_earlier_checkpoints_are_kept(folder: Path, tmp_path: Path) -> None:
    trainer(folder, tmp_path, keep=2).run()
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["last.pt", "step-00000008.pt", "step-00000009.pt"]
    state = torch.load(tmp_path / "step-00000008.pt", weights_only=True)
    assert state["step"] == 8
