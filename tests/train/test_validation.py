"""Measurements during a run: they change nothing, keep the best model, and end a run that gets no better."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tests.train.test_waves import CLEAN, QUIET, config, pack, sampler  # noqa: F401

from slipstream.data.options import ValidOptions
from slipstream.data.packs import Pack
from slipstream.train.joint import WhisperJointTask
from slipstream.train.loop import Trainer
from slipstream.train.model import SpeechModel
from slipstream.train.options import LossOptions, QuantiserOptions, RunOptions
from slipstream.train.validation import Check, Validation, held_out_loss


def task(pack: Pack, folder: Path) -> WhisperJointTask:  # noqa: F811
    torch.manual_seed(0)
    rows = sampler(pack, folder, {"chords": 1.0})
    return WhisperJointTask(SpeechModel(config(), 3), rows, LossOptions(), QuantiserOptions(start=2), True)


def test_a_held_out_loss_changes_nothing(pack: Pack, tmp_path: Path) -> None:  # noqa: F811
    learner = task(pack, tmp_path)
    held_out = learner.sampler.held_out([pack])
    before = {name: tensor.clone() for name, tensor in learner.module.state_dict().items()}
    first, again = (held_out_loss(learner, held_out, 3, 2, step) for step in (0, 0))
    assert first == again
    assert {"valid_loss", "valid_text"} <= set(first)
    held_out_loss(learner, held_out, 1, 1, 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.module.state_dict().items())
    assert not learner._start.placed


def test_held_out_rows_are_not_augmented(pack: Pack, tmp_path: Path) -> None:  # noqa: F811
    noisy = sampler(pack, tmp_path, {"chords": 1.0}, effects=CLEAN.model_copy(update={"telephone": 1.0}))
    batch = noisy.held_out([pack]).batch(0, 2)
    assert (batch.clean_BS == batch.heard_BS).all()
    assert not (noisy.batch(0, 2).clean_BS == noisy.batch(0, 2).heard_BS).all()


def test_the_best_model_is_kept_and_a_run_without_a_better_one_ends(pack: Pack, tmp_path: Path) -> None:  # noqa: F811
    rates = iter([0.9, 0.5, 0.6, 0.5, 0.4])
    options = ValidOptions(manifest=Path("m"), every=1, patience=2)

    def export(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "step").write_text(str(run.step), encoding="utf-8")

    validation = Validation(options, tmp_path / "run", None, lambda folder: next(rates), export)
    given = RunOptions(out=tmp_path / "run", steps=8, rows=1, trackers=())
    check = Check(1, validation, validation.exhausted)
    run = Trainer(task(pack, tmp_path), given, lambda line: None, check)
    run.run()
    assert run.step == 4
    assert (tmp_path / "run" / "best" / "step").read_text(encoding="utf-8") == "2"
    said: list[str] = []
    again = Trainer(task(pack, tmp_path), given, said.append, check)
    again.run()
    assert again.step == 4
    assert "brought no better model" in said[-1]


def test_something_must_be_measured() -> None:
    with pytest.raises(ValidationError, match="give a manifest"):
        ValidOptions(every=10)
