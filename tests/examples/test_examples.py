"""Every program in `examples` runs, with the built-in model and the sample."""

import asyncio
import importlib.util
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from benchmarks.language_model import language_model
from tests.server.harness import serving
from tests.speaking import save_model

import slipstream.audio
from slipstream.engine.speech import SpeechSession
from slipstream.errors import BackendError

EXAMPLES = Path(__file__).parents[2] / "examples"
SAMPLE = str(EXAMPLES / "sample.opus")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test_a_row_in_the_table_and_less_than_40_lines() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert set(re.findall(r'example\("(\w+)"\)', Path(__file__).read_text(encoding="utf-8"))) == names
    assert set(re.findall(r"^\| \[(\w+)\.py\]", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.M)) == names
    for name in names:
        assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 40, name


def test_transcribe_file(capsys: pytest.CaptureFixture[str]) -> None:
    example("transcribe_file").main(SAMPLE)
    assert re.search(
        r"^ +\d+\.\d\d +\d+\.\d\d +\d\.\d\d  \w+\n(.*\n)+\n.+\n12\.\d s, model tiny\n", capsys.readouterr().out
    )


def test_transcribe_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(SAMPLE, tmp_path / "good.opus")
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    example("transcribe_folder").main(str(tmp_path), str(tmp_path / "out"))
    assert re.search(r"bad\.wav: failed: .*\ngood\.opus: \d+ words", capsys.readouterr().out)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.json"]


def test_live_microphone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(slipstream.audio, "microphone", lambda: slipstream.audio.decode(SAMPLE))
    example("live_microphone").main()
    assert len(capsys.readouterr().out.split()) > 8


def test_asyncio_session(capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(example("asyncio_session").main(SAMPLE, SAMPLE))
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert len(first.split()) > 8


def test_websocket_client(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        example("websocket_client").main(SAMPLE, server.http, speed=100)
    assert re.match(r" +\d+\.\d\d  \w+\n", capsys.readouterr().out)


def test_voice_agent(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    agent, audio_S = example("voice_agent"), slipstream.audio.load(SAMPLE, 24_000)
    played: list[int] = []
    speaking = threading.Event()

    def chunks() -> Iterator[np.ndarray]:
        """The first sentence, a pause in which the agent speaks, and the sentences that interrupt it."""
        for start in range(0, 24_000 * 4, 1920):
            yield audio_S[start : start + 1920]
        while not speaking.is_set():
            yield np.zeros(1920, np.float32)
        for start in range(24_000 * 4, len(audio_S), 1920):
            yield audio_S[start : start + 1920]

    def play(frame: np.ndarray) -> None:
        played.append(len(frame))
        speaking.set()
        assert stopped.wait(60)  # plays slowly: the next frame would follow the interruption

    stopped = threading.Event()
    cancel = SpeechSession.cancel

    def stop(session: SpeechSession) -> None:
        cancel(session)
        stopped.set()

    answers = ["a long answer that nobody hears to its end " * 3, "yes"]
    with (
        language_model(answers) as (url, requests),
        slipstream.load() as transcriber,
        slipstream.load_speaker(save_model(tmp_path)) as speaker,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(SpeechSession, "cancel", stop)
        agent.converse(chunks(), transcriber, speaker, play, url, "small")
    first, last = requests[0]["messages"], requests[-1]["messages"]
    assert [message["role"] for message in first] == ["system", "user"]
    assert first == last[:2]
    assert [message["role"] for message in last[2:4]] == ["assistant", "user"]
    assert requests[0]["stream"] is True
    assert set(played) == {1920}
    assert len(last[2]["content"].split()) < 5  # one frame was played before the interruption


def test_subtitles(tmp_path: Path) -> None:
    video = Path(shutil.copy(SAMPLE, tmp_path))
    example("subtitles").main(str(video))
    assert video.with_suffix(".srt").read_text(encoding="utf-8").startswith("1\n00:00:0")
    assert video.with_suffix(".vtt").read_text(encoding="utf-8").startswith("WEBVTT\n")


def test_fine_tune(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    example("fine_tune").main(SAMPLE, str(tmp_path))
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_tokens_and_codec(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    example("tokens_and_codec").main(SAMPLE)
    out = capsys.readouterr().out
    assert re.search(r"\d\.\d\d s are \d+ frames of \d+ codes", out)
    with slipstream.load() as transcriber:
        assert f"words: {transcriber.transcribe(SAMPLE).text}\n" in out


@pytest.fixture
def ray_shutdown() -> Iterator[None]:
    yield
    import ray

    ray.shutdown()


def test_batch_ray_names_what_to_install() -> None:
    if importlib.util.find_spec("ray") is not None:
        pytest.skip("ray is installed")
    with pytest.raises(BackendError, match=r"slipstream-stt\[ray\]"):
        example("batch_ray").main(SAMPLE)


def test_batch_ray(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="needs the extra ray: make ray")
    request.getfixturevalue("ray_shutdown")
    example("batch_ray").main(SAMPLE, actors=1)
    assert "sample.opus: " in capsys.readouterr().out
