"""What happens around a capture; the capture itself needs a GPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from slipstream.backends.torch import graphs  # noqa: E402


class Stream:
    def synchronize(self) -> None:
        pass


class Graph:
    def replay(self) -> None:
        pass


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A device that records, and raises at the end of a recording what the test has put here."""
    failures: list[BaseException] = []

    @contextlib.contextmanager
    def record(*_: object, **__: object) -> Iterator[None]:
        yield
        if failures:
            raise failures[0]

    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    return failures


@pytest.mark.usefixtures("recording")
def test_a_step_is_warmed_up_and_recorded_once():
    runs: list[int] = []
    replay = graphs.capture(lambda: runs.append(1), Stream(), None, "a step")
    assert len(runs) == graphs.WARM_UP_STEPS + 1
    assert replay is not None
    replay()
    assert len(runs) == graphs.WARM_UP_STEPS + 1


@pytest.mark.usefixtures("recording")
def test_a_recording_does_not_disturb_other_threads(monkeypatch: pytest.MonkeyPatch):
    options: dict[str, object] = {}

    def record(graph: Graph, **given: object) -> contextlib.nullcontext[None]:
        options.update(given)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "graph", record)
    stream = Stream()
    graphs.capture(lambda: None, stream, "a pool", "a step")
    assert options == {"pool": "a pool", "stream": stream, "capture_error_mode": "thread_local"}


def test_a_step_that_cannot_be_recorded_is_reported(recording: list[BaseException], caplog: pytest.LogCaptureFixture):
    recording.append(RuntimeError("operation not permitted when stream is capturing"))
    with caplog.at_level(logging.WARNING):
        assert graphs.capture(lambda: None, Stream(), None, "a step") is None
    assert "a step: no CUDA graph" in caplog.text
    assert "not permitted when stream is capturing" in caplog.text


@pytest.mark.usefixtures("recording")
def test_a_step_that_fails_in_its_warm_up_is_reported_too(caplog: pytest.LogCaptureFixture):
    def fail() -> None:
        raise RuntimeError("cuDNN has no plan")

    with caplog.at_level(logging.WARNING):
        assert graphs.capture(fail, Stream(), None, "a step") is None
    assert "cuDNN has no plan" in caplog.text
    assert not torch.backends.cudnn.benchmark


def test_memory_that_is_full_is_an_error(recording: list[BaseException]):
    recording.append(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        graphs.capture(lambda: None, Stream(), None, "a step")
