"""A transcriber that needs no model, and the command line as users meet it: arguments in, output and exit code out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

import slipstream
from slipstream.bundle import ModelBundle
from slipstream.cli import main
from slipstream.events import Event, Final, OpenWord, Ready, Step, Turn, Word

FRAME = 1920


@dataclass
class FakeTranscriber:
    """Writes one word per second: its loudness, in hundredths of full scale. Calls `on_step` for each frame."""

    slots: int = 1
    model: str = "fake"
    delay: float = 0.5
    frame_rate: float = 12.5
    sample_rate: int = 24_000
    on_step: Callable[[int], None] = lambda index: None
    closed: bool = False
    options: Any = None

    def __enter__(self) -> FakeTranscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def stream(self, chunks: Iterable[np.ndarray], sample_rate: int, options: Any = None) -> Iterator[Event]:
        assert sample_rate == 24_000
        self.options = options
        yield Ready()
        audio = np.zeros(0, np.float32)
        frames = words = 0
        for chunk in chunks:
            audio = np.concatenate([audio, chunk])
            while (frames + 1) * FRAME <= len(audio):
                frames += 1
                self.on_step(frames)
                yield Step(index=frames, pause=(), buffered=0)
            while (words + 1) * 24_000 <= len(audio):
                text = f"{100 * np.abs(audio[words * 24_000 : (words + 1) * 24_000]).max():.0f}"
                yield OpenWord(text, float(words), 0.9)
                yield Word(text, float(words), words + 0.5, 0.9)
                words += 1
        if words:
            yield Turn(0.0, words - 0.5)
        yield Final(duration=len(audio) / 24_000, flush_seconds=0.012)


@dataclass
class Loaded:
    """The calls of `slipstream.load`, and their results. `beam` is that of the models' configurations."""

    beam: int = 1
    transcriber: FakeTranscriber = field(default_factory=FakeTranscriber)
    model: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    record = Loaded()

    def load(
        model: str | SimpleNamespace, *, progress: Callable[[int, int], None], **arguments: Any
    ) -> FakeTranscriber:
        progress(1, 2)
        record.model = model if isinstance(model, str) else model.name
        record.arguments = arguments
        record.transcriber.slots = arguments.get("slots", 1)
        return record.transcriber

    def resolve(model: str) -> SimpleNamespace:
        lm = SimpleNamespace(languages=("en", "fr"))
        return SimpleNamespace(name=model, config=SimpleNamespace(beam=record.beam, lm=lm))

    monkeypatch.setattr(slipstream, "load", load, raising=False)
    monkeypatch.setattr(ModelBundle, "resolve", resolve)
    return record


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line in this process."""

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["slipstream", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        out, err = capfd.readouterr()
        return Outcome(int(exit.value.code or 0), out, err)

    return run


@pytest.fixture
def sound(tmp_path: Path) -> Callable[..., Path]:
    """Write a WAV file with these levels in each channel: each level lasts a second."""

    def write(name: str, *channels: list[float], rate: int = 24_000) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        samples_CS = np.repeat(np.array(channels), rate, axis=1)
        packed = np.ascontiguousarray((samples_CS.T * 32767).astype(np.int16).reshape(1, -1))
        with av.open(str(path), "w") as container:
            layout = "mono" if len(channels) == 1 else "stereo"
            stream = container.add_stream("pcm_s16le", rate=rate, layout=layout)
            frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
            frame.sample_rate = rate
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write
