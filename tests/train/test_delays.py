"""A model with one delay that is trained with several for the first time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.models import stt_config
from tests.train import world

from slipstream.bundle import ModelBundle
from slipstream.data.options import DataOptions
from slipstream.errors import ConfigError
from slipstream.model.config import EndingCurve, RecordingsConfig, STTConfig
from slipstream.train.launch import run_lm
from slipstream.train.lora import based_lm
from slipstream.train.options import LMRun, LoraOptions, ModelOptions, RunOptions
from slipstream.train.setup import DELAY, delayed, with_drawn_delay


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.base_folder(tmp_path_factory.mktemp("delays"))


def options(folder: Path, out: Path, **changes: object) -> LMRun:
    data = DataOptions(packs=(folder / "pack",), weights={"chords": 1.0}, seconds=4.0, delay=(4, 9))
    return LMRun(
        run=RunOptions(out=out, steps=2, rows=2),
        model=ModelOptions(base=str(folder / "base")),
        data=data,
        **changes,  # type: ignore[arg-type]
    )


def test_at_the_start_every_delay_writes_what_the_base_writes(folder: Path, tmp_path: Path) -> None:
    base = ModelBundle.resolve(str(folder / "base")).checkpoint()
    config = with_drawn_delay(base.config.lm, (4, 9))
    assert config.conditioners == (DELAY,)
    lm = based_lm(base, config, options(folder, tmp_path)).eval()
    for seconds in (0.32, 0.72):
        condition_BD = lm.condition({"delay": seconds})
        assert condition_BD is not None
        assert not condition_BD.any()
    unchanged = {name: w for name, w in lm.state_dict().items() if not name.startswith("conditioners.")}
    assert unchanged.keys() == base.lm.keys()
    assert all(np.array_equal(weight.numpy(), np.asarray(base.lm[name])) for name, weight in unchanged.items())


def test_the_new_model_has_every_delay_between_the_bounds(folder: Path, tmp_path: Path) -> None:
    run_lm(options(folder, tmp_path / "run"), lambda line: None)
    config = ModelBundle.resolve(str(tmp_path / "run" / "model")).config
    assert config.delay_frames == 6
    assert [config.with_delay(seconds).delay_frames for seconds in (0.32, 0.48, 0.72)] == [4, 6, 9]
    weights = ModelBundle.resolve(str(tmp_path / "run" / "model")).checkpoint().lm
    assert np.asarray(weights["conditioners.delay.output_proj.weight"]).any()


def test_a_model_that_has_the_condition_keeps_it() -> None:
    lm = world.config(conditioned=True).lm
    assert with_drawn_delay(lm, (4, 9)) is lm
    assert with_drawn_delay(world.config().lm, (6, 6)).conditioners == ()


def test_an_adapter_cannot_learn_the_condition(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an adapter or pause heads alone cannot learn the new condition delay"):
        run_lm(options(folder, tmp_path / "run", lora=LoraOptions(rank=4)), lambda line: None)


def test_the_decoder_of_whisper_is_refused() -> None:
    lm = stt_config(codec="whisper", decoder=True).lm
    with pytest.raises(ConfigError, match="Whisper's decoder has no conditions, so give it one delay"):
        with_drawn_delay(lm, (4, 9))


def test_what_was_chosen_for_the_base_is_not_of_the_trained_model() -> None:
    ending = EndingCurve(bias=-6.5, heads=(1.3, -0.6, 0.3, -0.1), silence=6.1, silence_seconds=0.8)
    changes = {"word_shift_seconds": 0.12, "min_confidence": 0.25, "beam": 2}
    base = stt_config().model_copy(update={**changes, "end_of_turn": ending, "end_of_turn_above": 0.7})
    trained = delayed(base, (6, 6))
    assert (trained.word_shift_seconds, trained.min_confidence, trained.beam) == (0.0, 0.0, 2)
    assert (trained.end_of_turn, trained.end_of_turn_above) == (None, 0.6)


def test_the_curve_of_the_base_is_not_kept_and_reported(folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(folder / "base", base)
    raw = json.loads((base / "config.json").read_text())
    curve = {"bias": -6.5, "heads": [1.3, -0.6, 0.3, -0.1], "silence": 6.1, "silence_seconds": 0.8}
    raw["stt_config"] |= {"end_of_turn_above": 0.7, "end_of_turn": curve}
    (base / "config.json").write_text(json.dumps(raw))
    assert ModelBundle.resolve(str(base)).config.end_of_turn is not None
    lines: list[str] = []
    run = LMRun(
        run=RunOptions(out=tmp_path / "run", steps=1, rows=1),
        model=ModelOptions(base=str(base), pause_heads=2),
        data=DataOptions(packs=(folder / "pack",), weights={"chords": 1.0}, seconds=4.0),
        pause_heads_only=True,
    )
    run_lm(run, lines.append)
    config = ModelBundle.resolve(str(tmp_path / "run" / "model")).config  # a curve of four heads would be refused
    assert (config.lm.pause_heads, config.end_of_turn, config.end_of_turn_above) == (2, None, 0.6)
    assert any("the curve that ends turns is not kept" in line for line in lines)


def test_recordings_are_kept_with_the_delay_of_the_base_only() -> None:
    plain = stt_config(codec="whisper", decoder=True)
    recordings = RecordingsConfig(lookahead=12, delay_frames=plain.delay_frames + 6)
    base = plain.model_copy(update={"recordings": recordings})
    same, later = base.delay_frames, base.delay_frames + 1
    assert delayed(base, (same, same)).recordings == recordings
    assert delayed(base, (later, later)).recordings is None
    conditioned = base.lm.model_copy(update={"conditioners": (DELAY,)})
    assert delayed(base.model_copy(update={"lm": conditioned}), (same, same)).recordings is None


def test_a_delay_that_is_drawn_leaves_a_configuration_that_loads() -> None:
    plain = stt_config(codec="whisper")
    plain = plain.model_copy(update={"lm": plain.lm.model_copy(update={"conditioners": ()}), "condition_values": {}})
    recordings = RecordingsConfig(lookahead=12, delay_frames=plain.delay_frames + 6)
    base = STTConfig.model_validate({**dict(plain), "recordings": recordings})
    trained = delayed(base.model_copy(update={"lm": with_drawn_delay(base.lm, (6, 10))}), (6, 10))
    assert STTConfig.model_validate(dict(trained)) == trained
