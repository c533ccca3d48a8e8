"""`slipstream evaluate`: what is expected when there is little or nothing to measure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from slipstream.checkpoints.sources import BUILT_IN
from slipstream.cli.evaluate import evaluate
from slipstream.errors import SlipstreamError

pytest.importorskip("jinja2")
pytest.importorskip("jiwer")
pytest.importorskip("whisper_normalizer")

SAMPLE = Path(__file__).parents[2] / "examples" / "sample.opus"


def _evaluate(folder: Path, *arguments: str, **text_of: str) -> Result:
    """On a manifest with a line for each file's name (`sample` is the example) and its text."""
    lines = [
        json.dumps({"audio": str(SAMPLE if name == "sample" else folder / name), "text": text, "dataset": "own"})
        for name, text in text_of.items()
    ]
    (folder / "all.jsonl").write_text("\n".join(lines))
    app = typer.Typer()
    app.command()(evaluate)
    return CliRunner().invoke(app, [str(folder / "all.jsonl"), "--model", "tiny", *arguments])


@pytest.mark.parametrize(
    ("arguments", "text_of", "message"),
    [
        ((), {}, "has no recordings"),
        (("--dataset", "x"), {"sample": "good morning"}, "no recording is of dataset 'x'; there are own"),
        ((), {"sample": "", "other": "..."}, "no recording of 2 has a text"),
        ((), {"missing": "good morning"}, "without the 1 that cannot be read: no recording of 0"),
    ],
)
def test_an_evaluation_without_recordings_is_an_error(
    arguments: tuple[str, ...], text_of: dict[str, str], message: str, tmp_path: Path
) -> None:
    result = _evaluate(tmp_path, *arguments, **text_of)
    assert isinstance(result.exception, SlipstreamError)
    assert message in str(result.exception)
    assert "WER" not in result.output


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_a_result_that_cannot_be_written_is_an_error_before_the_evaluation(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = _evaluate(tmp_path, option, str(tmp_path / "file" / "out"), sample="good morning")
    assert isinstance(result.exception, SlipstreamError)
    assert "no file can be written to this folder" in str(result.exception)
    assert "WER" not in result.output


def test_a_missing_file_is_named_and_the_rest_measured(tmp_path: Path) -> None:
    result = _evaluate(tmp_path, missing="nobody", sample="good morning")
    assert result.exit_code == 0, result.output
    assert f"all.jsonl, line 1: {tmp_path / 'missing'}: no such file" in result.output
    assert "cannot be read: 1" in result.output
    assert "8 concurrent streams with a beam of 2" in result.output


def test_a_beam_of_one_is_greedy(tmp_path: Path) -> None:
    result = _evaluate(tmp_path, "--beam", "1", "--slots", "2", sample="good morning")
    assert "2 concurrent streams with a beam of 1" in result.output


@pytest.fixture(scope="module")
def with_recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with another lookahead for recordings."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(BUILT_IN / "tiny", folder)
    raw = json.loads((folder / "config.json").read_text())
    raw["stt_config"]["recordings"] = {"lookahead": 20, "delay_frames": 37}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((), (2, 2.96)), (("--live",), (1, 1.76)), (("--live", "--beam", "2"), (2, 1.76)), (("--beam", "1"), (1, 2.96))],
)
def test_recordings_or_live_streams_are_measured(
    arguments: tuple[str, ...], expected: tuple[int, float], with_recordings: Path, tmp_path: Path
) -> None:
    beam, delay = expected
    model = ("--model", str(with_recordings), "--backend", "onnx", "--slots", "1")
    result = _evaluate(tmp_path, *model, *arguments, "--json", str(tmp_path / "all.json"), sample="good morning")
    assert f"1 concurrent streams with a beam of {beam}, text delay {delay:g} s" in result.output
    measured = json.loads((tmp_path / "all.json").read_text())
    assert (measured["beam"], measured["delay"]) == (beam, delay)


def test_another_delay_is_refused_by_a_model_with_one(tmp_path: Path) -> None:
    result = _evaluate(tmp_path, "--backend", "onnx", "--delay", "2", sample="good morning")
    assert isinstance(result.exception, SlipstreamError)
    assert "this model has one delay" in str(result.exception)


def test_all_words_are_measured_with_a_minimum_of_zero(tmp_path: Path) -> None:
    words = {}
    for least in ("0", "0.99"):
        _evaluate(tmp_path, "--min-confidence", least, "--json", str(tmp_path / "all.json"), sample="good morning")
        words[least] = json.loads((tmp_path / "all.json").read_text())["overall"]["words"]
    assert words["0"]["insertions"] > words["0.99"]["insertions"]
