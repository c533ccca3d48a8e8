"""Phases: what is read, and at what rate a run learns, follows from its progress, also after a kill."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from tests.train import world
from tests.train.test_waves import config, pack, sampler  # noqa: F401

from slipstream.data.packs import Clip, Pack, PackKind, write_pack
from slipstream.data.sampler import TokenSampler
from slipstream.errors import ConfigError
from slipstream.model.text import Tokenizer
from slipstream.nn.lm import LM
from slipstream.train.joint import WhisperJointTask
from slipstream.train.loop import Trainer
from slipstream.train.model import SpeechModel
from slipstream.train.optim import trapezoid
from slipstream.train.options import (
    LMRun,
    LossOptions,
    PhaseOptions,
    Phases,
    QuantiserOptions,
    RunOptions,
    read_run,
)
from slipstream.train.phases import Phase, plan
from slipstream.train.phases import Phases as GivenPhases
from slipstream.train.tasks import TextTask


def phases(*given: dict[str, object]) -> tuple[PhaseOptions, ...]:
    return TypeAdapter(Phases).validate_python(given)


@pytest.mark.parametrize("ends", [(0.5, 0.9), (0.5, 0.5, 1.0), (0.8, 0.3, 1.0)])
def test_the_phases_end_one_after_the_other(ends: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="it must rise, to 1 in the last phase"):
        phases(*({"until": end} for end in ends))


def test_the_run_in_the_guide_holds_its_rate_and_then_lowers_it(tmp_path: Path) -> None:
    page = Path("docs/guides/training.md").read_text(encoding="utf-8")
    whole, changes = re.findall(r"```toml\n(.*?)```", page.partition("## Phases")[2].partition("\n## ")[0], re.DOTALL)
    path = tmp_path / "run.toml"
    path.write_text(whole, encoding="utf-8")
    run: LMRun = read_run(path, LMRun)
    path.write_text(whole.partition("[[phase]]")[0] + changes, encoding="utf-8")
    assert read_run(path, LMRun).phase[1].weights == {"own": 1.0}
    starts = (0.0, *(phase.until for phase in run.phase))
    given = GivenPhases([Phase(phase, start, lambda *_: None) for phase, start in zip(run.phase, starts, strict=False)])
    for progress in (0.0, 0.01, 0.3, 0.5, 0.75, 0.99):
        rate = trapezoid(progress, run.run.warmup, run.run.decay) * given.at(progress).rate(progress)
        assert rate == pytest.approx(trapezoid(progress, run.run.warmup, 0.5))


def trainer(folder: Path, out: Path) -> tuple[Trainer, list[tuple[int, set[int]]]]:
    """A run over tokens that are all 1 in the dataset `a` and all 2 in `b`, and the tokens that each step reads."""
    if not (folder / "pack").exists():
        kind = PackKind("tokens", 4, 12.5, (0.0,) * 4)
        clips = [Clip(0, 0, "one", "en", name, "s", (("one", 0.1, 0.4),)) for name in "ab"]
        items = [(np.full((30, 4), n + 1, np.int64), clip) for n, clip in enumerate(clips)]
        write_pack(folder / "pack", kind, items)
    torch.manual_seed(0)
    rows = TokenSampler(
        [Pack(folder / "pack")], Tokenizer(world.tokenizer(folder)), world.rows(2.4, {"a": 1.0, "b": 1.0})
    )
    task = TextTask(LM(world.config().lm), rows, LossOptions(), 0.0)
    options = RunOptions(
        out=out, steps=6, rows=2, warmup=0, decay=0, learning_rate=0.01, checkpoint_every=1, trackers=(), log_every=1
    )
    given = phases({"until": 0.5, "weights": {"a": 1.0}}, {"until": 1, "weights": {"b": 1.0}, "rate": [0.5, 0]})
    run = Trainer(task, options, lambda line: None, phases=plan(given, rows, rows.data))
    read: list[tuple[int, set[int]]] = []
    loss = task.loss

    def watched(batch: object, step: int, progress: float) -> object:
        read.append((step, set(np.unique(batch.codes_BKT)) - {0}))  # type: ignore[attr-defined]
        return loss(batch, step, progress)  # type: ignore[arg-type]

    task.loss = watched  # type: ignore[method-assign, assignment]
    return run, read


def test_rows_and_rate_follow_the_progress(tmp_path: Path) -> None:
    run, read = trainer(tmp_path, tmp_path / "run")
    rates: list[float] = []
    step = run.optimizer.step
    run.optimizer.step = lambda lr, *rest: (rates.append(lr), step(lr, *rest))[1]  # type: ignore[method-assign]
    run.run()
    assert read == [(0, {1}), (1, {1}), (2, {1}), (3, {2}), (4, {2}), (5, {2})]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.005, 0.01 / 3, 0.005 / 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"c": 1.0}}, r"the phase until 1: data\.weights names c, but the packs \(a, b\)"),
        ({"crop": {"c": 0.5}}, r"phase\.crop names c, which weights do not draw from"),
    ],
)
def test_a_phase_may_only_use_existing_datasets(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    rows = trainer(tmp_path, tmp_path / "run")[0].task.sampler  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=message):
        plan(phases({"until": 1, **changes}), rows, rows.data)


def test_a_phase_may_leave_out_a_cropped_dataset(tmp_path: Path) -> None:
    rows = trainer(tmp_path, tmp_path / "run")[0].task.sampler  # type: ignore[attr-defined]
    data = rows.data.model_copy(update={"crop": {"a": 0.5}, "replay": ("a",)})
    given = plan(phases({"until": 1, "weights": {"b": 1.0}}), rows, data)
    assert given is not None
    assert set(np.unique(given.at(0).draw(0, 4).codes_BKT)) == {0, 2}


def test_a_killed_run_resumes_in_its_phase(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path, tmp_path / "whole")
    whole = torch.load(run.run(), weights_only=True)["weights"]
    run, _ = trainer(tmp_path, tmp_path / "killed")
    world.kill_at(4, run)
    run, read = trainer(tmp_path, tmp_path / "killed")
    resumed = torch.load(run.run(), weights_only=True)["weights"]
    assert read == [(4, {2}), (5, {2})]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_encoder_is_kept_in_a_phase(pack: Pack, tmp_path: Path) -> None:  # noqa: F811
    torch.manual_seed(0)
    model = SpeechModel(config(), 3)
    rows = sampler(pack, tmp_path, {"chords": 1.0})
    task = WhisperJointTask(model, rows, LossOptions(), QuantiserOptions(start=0), True)
    weight = model.codec.encoder.conv1.weight
    before = weight.detach().clone()
    same: list[bool] = []
    task.after_step = lambda: same.append(torch.equal(weight, before))  # type: ignore[method-assign]
    options = RunOptions(out=tmp_path / "run", steps=4, rows=1, warmup=0, decay=0, trackers=())
    given = phases({"until": 0.5, "encoder_rate": 0}, {"until": 1, "encoder_rate": 0.5})
    Trainer(task, options, lambda line: None, phases=plan(given, rows, rows.data)).run()
    assert same == [True, True, False, False]
