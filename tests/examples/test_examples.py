"""Every program in `examples` runs, with the built-in model and the sample."""

import asyncio
import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tests.server.harness import serving

import slipstream.audio
from slipstream.errors import BackendError

EXAMPLES = Path(__file__).parents[2] / "examples"
SAMPLE = str(EXAMPLES / "sample.opus")
NOT_RUN_HERE = {"label_with_moonshine"}  # downloads another recogniser


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test_a_row_in_the_table_and_less_than_40_lines() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")} - NOT_RUN_HERE
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


def test_voice_agent(capsys: pytest.CaptureFixture[str]) -> None:
    example("voice_agent").main(SAMPLE)
    assert re.search(r"s: I understood: \w+ \w+", capsys.readouterr().out)


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
