"""Synthesisers that are programs: their arguments and their failures."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from recipes.tiny.voices import ENGINES

from slipstream.data.synthesis import Voice, synthesise
from slipstream.errors import BackendError, SlipstreamError

_PROGRAM = """#!{python}
import sys, wave
print("cannot" if "fail" in sys.argv[-1] else "", file=sys.stderr)
open("{arguments}", "w").write("\\n".join(sys.argv[1:]))
if "fail" in " ".join(sys.argv):
    sys.exit(3)
with wave.open(sys.argv[sys.argv.index("{option}") + 1], "wb") as out:
    out.setnchannels(1)
    out.setsampwidth(2)
    out.setframerate(16000)
    out.writeframes(b"\\0\\x40" * 1600)
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the programs by scripts that write their arguments to a file; return that file."""
    arguments = tmp_path / "arguments"
    for name, option in (("pico2wave", "-w"), ("RHVoice-test", "-o")):
        program = tmp_path / name
        program.write_text(_PROGRAM.format(python=sys.executable, arguments=arguments, option=option))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return arguments


@pytest.mark.parametrize(("engine", "name"), [("pico", "fr-FR"), ("rhvoice", "clb")])
def test_programs_speak_without_times(engine: str, name: str, programs: Path) -> None:
    spoken = synthesise("bonjour à tous", ENGINES[engine], Voice(name, rate=1.2))
    np.testing.assert_array_equal(spoken.samples, np.full(1600, 0.5, np.float32))
    assert spoken.sample_rate == 16000
    assert (spoken.words, spoken.phones) == ((), ())
    assert name in programs.read_text()
    assert "120" in programs.read_text()


def test_text_is_not_read_as_markup(programs: Path) -> None:
    synthesise("five < six & seven", ENGINES["pico"], Voice("en-US"))
    spoken = programs.read_text().splitlines()[-1]
    assert spoken == "<speed level='100'><pitch level='100'>five   six   seven</pitch></speed>"


def test_a_failing_program_is_reported(programs: Path) -> None:
    with pytest.raises(SlipstreamError, match="pico2wave cannot speak 'fail': cannot"):
        synthesise("fail", ENGINES["pico"], Voice("en-US"))


def test_a_missing_program_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="install the package libttspico-utils"):
        synthesise("a word", ENGINES["pico"], Voice("en-US"))


@pytest.mark.parametrize("engine", ["flite", "festival", "pico", "rhvoice"])
def test_an_unknown_voice_is_reported(engine: str) -> None:
    with pytest.raises((SlipstreamError, BackendError), match=r"has no voice 'nobody'|is not installed"):
        synthesise("a word", ENGINES[engine], Voice("nobody"))


@pytest.mark.parametrize("text", ["...", "1984", "?! -"])
def test_a_text_without_letters_is_not_spoken(text: str, programs: Path) -> None:
    with pytest.raises(SlipstreamError, match="there are no letters in"):
        synthesise(text, ENGINES["pico"], Voice("en-US"))
    assert not programs.exists()


def test_a_program_that_writes_no_audio_is_reported(programs: Path) -> None:
    (programs.parent / "RHVoice-test").write_text("#!/bin/sh\n")
    with pytest.raises(SlipstreamError, match="RHVoice-test wrote no audio for 'a word'"):
        synthesise("a word", ENGINES["rhvoice"], Voice("clb"))
