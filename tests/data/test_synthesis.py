"""Synthesisers that are programs: what they are asked, and what becomes of their failures."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from slipstream.data.synthesis import Voice, phones_of, synthesise
from slipstream.errors import BackendError, SlipstreamError

_PROGRAM = """#!{python}
import sys, wave
print("cannot" if "fail" in sys.argv[-1] else "", file=sys.stderr)
open("{asked}", "w").write("\\n".join(sys.argv[1:]))
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
    """Stand-ins for the programs, which write down what they were asked; gives that file."""
    asked = tmp_path / "asked"
    for name, option in (("pico2wave", "-w"), ("RHVoice-test", "-o")):
        program = tmp_path / name
        program.write_text(_PROGRAM.format(python=sys.executable, asked=asked, option=option))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return asked


@pytest.mark.parametrize("voice", [Voice("pico", "fr-FR", rate=1.2), Voice("rhvoice", "clb", rate=1.2)])
def test_programs_speak_without_times(voice: Voice, programs: Path) -> None:
    spoken = synthesise("bonjour à tous", voice)
    np.testing.assert_array_equal(spoken.samples, np.full(1600, 0.5, np.float32))
    assert spoken.sample_rate == 16000
    assert (spoken.words, spoken.phones) == ((), ())
    assert voice.name in programs.read_text()
    assert "120" in programs.read_text()


def test_text_is_not_read_as_marks(programs: Path) -> None:
    synthesise("five < six & seven", Voice("pico", "en-US"))
    said = programs.read_text().splitlines()[-1]
    assert said == "<speed level='100'><pitch level='100'>five   six   seven</pitch></speed>"


def test_a_program_that_fails_is_told_of(programs: Path) -> None:
    with pytest.raises(SlipstreamError, match="pico2wave cannot speak 'fail': cannot"):
        synthesise("fail", Voice("pico", "en-US"))


def test_a_program_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="install the package libttspico-utils"):
        synthesise("a word", Voice("pico", "en-US"))


@pytest.mark.parametrize("engine", ["flite", "festival", "pico", "rhvoice"])
def test_a_voice_that_is_not_there_is_named(engine: str) -> None:
    with pytest.raises((SlipstreamError, BackendError), match=r"has no voice 'nobody'|is not installed"):
        synthesise("a word", Voice(engine, "nobody"))


@pytest.mark.parametrize("text", ["...", "1984", "?! -"])
def test_what_has_no_letters_is_not_spoken(text: str, programs: Path) -> None:
    with pytest.raises(SlipstreamError, match="there are no letters in"):
        synthesise(text, Voice("pico", "en-US"))
    assert not programs.exists()


def test_a_program_that_leaves_no_audio_is_told_of(programs: Path) -> None:
    (programs.parent / "RHVoice-test").write_text("#!/bin/sh\n")
    with pytest.raises(SlipstreamError, match="RHVoice-test leaves no audio of 'a word'"):
        synthesise("a word", Voice("rhvoice", "clb"))


def test_a_language_without_phones_is_named_with_those_there_are() -> None:
    with pytest.raises(SlipstreamError, match="no phones are known of language 'xx'; there are en, fr"):
        phones_of("a word", "xx")
