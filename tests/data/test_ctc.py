"""Word times from CTC models: letters, blanks, and models in ONNX."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from slipstream.data import ctc
from slipstream.data.ctc import CtcAligner, load_ctc
from slipstream.data.manifest import Recording
from slipstream.data.wave import write_wave
from slipstream.errors import CheckpointError, SlipstreamError

VOCABULARY = {"A": 0, "B": 1, "|": 2, "<pad>": 3}
FRAMES = [3, 3, 0, 3, 1, 1, 3, 3, 2, 3, 3, 1, 3, 1, 3, 3]
"""Symbols of 16 frames: `ab`, a pause, `bb`."""


def _scores(samples: np.ndarray) -> np.ndarray:
    scores = np.full((len(FRAMES), 4), -6.0, np.float32)
    scores[np.arange(len(FRAMES)), FRAMES] = -0.01
    return scores


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    write_wave(tmp_path / "a.wav", np.zeros(round(24_000 * 0.32), np.float32))  # frames of 20 ms
    return Recording(tmp_path / "a.wav", "Ab, bb!")


def test_words_start_with_their_first_letter(recording: Recording) -> None:
    found, fit = CtcAligner(_scores, VOCABULARY, "letters").align(recording)
    assert [word.text for word in found.words] == ["Ab,", "bb!"]
    assert [word.start for word in found.words] == pytest.approx([0.04, 0.22], abs=1e-3)
    assert found.words[0].end == pytest.approx(0.12, abs=1e-3)
    assert -0.5 < fit < 0


def test_another_text_fits_less(recording: Recording) -> None:
    aligner = CtcAligner(_scores, VOCABULARY, "letters")
    right, wrong = (aligner.align(Recording(recording.audio, text))[1] for text in ("ab bb", "ba aa"))
    assert right > aligner.least > wrong


def test_a_text_in_another_script_is_refused(recording: Recording) -> None:
    with pytest.raises(SlipstreamError, match="letters has no letter of"):
        CtcAligner(_scores, VOCABULARY, "letters").align(Recording(recording.audio, "\u0436\u0443\u043a"))


def test_a_vocabulary_without_a_blank_is_refused() -> None:
    with pytest.raises(CheckpointError, match="letters: its vocabulary has no blank; expected one of <pad>"):
        CtcAligner(_scores, {"A": 0}, "letters")


@pytest.mark.parametrize("normalise", [True, False])
def test_a_model_in_onnx(recording: Recording, tmp_path: Path, normalise: bool) -> None:
    onnx = pytest.importorskip("onnx")
    helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
    shape = helper.make_tensor("shape", onnx.TensorProto.INT64, [3], [1, -1, 4])
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "reshape",
        [helper.make_tensor_value_info("x", FLOAT, [1, "S"])],
        [helper.make_tensor_value_info("y", FLOAT, [1, "T", 4])],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY), encoding="utf-8")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": normalise}), encoding="utf-8")
    aligner = load_ctc(str(tmp_path))
    samples = np.array([3.0, 1.0, 1.0, 1.0] * 4, np.float32)
    scaled = (samples - samples.mean()) / samples.std() if normalise else samples
    expected = np.exp(scaled[:4]) / np.exp(scaled[:4]).sum()
    np.testing.assert_allclose(np.exp(aligner.scores(samples)), np.tile(expected, (4, 1)), rtol=1e-4)


def test_a_vocabulary_that_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "vocab.json").write_text("[]", encoding="utf-8")
    with pytest.raises((CheckpointError, Exception), match=r"vocab\.json|onnx|protobuf"):
        load_ctc(str(tmp_path))


@pytest.mark.parametrize("answers", [True, False])
def test_the_hub_is_asked_for_a_model_only_if_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    pytest.importorskip("torch")
    asked: list[tuple[str, bool]] = []

    class Auto:
        @staticmethod
        def from_pretrained(model: str, local_files_only: bool = False) -> None:
            asked.append((model, local_files_only))
            raise OSError("it is not there")

    transformers = ModuleType("transformers")
    for name in ("AutoModelForCTC", "AutoFeatureExtractor", "AutoTokenizer"):
        setattr(transformers, name, Auto)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    monkeypatch.setattr(ctc, "hub_answers", lambda: answers)
    for model in ("nosuch", str(tmp_path)):
        with pytest.raises(CheckpointError, match="cannot load it as a CTC model: it is not there"):
            load_ctc(model)
    assert asked == [("nosuch", not answers), (str(tmp_path), True)]
