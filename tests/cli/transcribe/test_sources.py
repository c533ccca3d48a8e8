"""Arguments to jobs: which audio is transcribed, and where its output goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.cli.transcribe.sources import check_places, find_jobs, split_channels
from slipstream.errors import AudioError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp3", "a.wav", "b.txt", "deep/c.FLAC", "deep/d.opus"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def outputs(*arguments: str) -> dict[str, str]:
    return {job.name: str(job.output(Path("out"), "srt")) for job in find_jobs(arguments)}


def test_a_folder_is_searched_and_its_structure_kept(folder: Path) -> None:
    assert outputs("deep", ".") == {
        "deep/c.FLAC": "out/c.srt",
        "deep/d.opus": "out/d.srt",
        "a.mp3": "out/a.mp3.srt",
        "a.wav": "out/a.wav.srt",
    }
    assert outputs(str(folder))[f"{folder}/deep/c.FLAC"] == "out/deep/c.srt"


def test_patterns_and_standard_input(folder: Path) -> None:
    assert outputs("**/*.opus", "-") == {"deep/d.opus": "out/d.srt", "standard input": "out/stdin.srt"}


def test_a_file_with_the_name_of_a_pattern_is_itself(folder: Path) -> None:
    (folder / "[1].mp3").touch()
    assert list(outputs("[1].mp3")) == ["[1].mp3"]


def test_a_missing_file_stays_in_the_list_to_fail_in_its_turn(folder: Path) -> None:
    assert list(outputs("gone.mp3", "a.mp3")) == ["gone.mp3", "a.mp3"]


def test_inputs_that_are_all_missing_are_an_error(folder: Path) -> None:
    with pytest.raises(AudioError, match=r"^gone\.mp3, gone\.wav: no such file$"):
        find_jobs(["gone.mp3", "gone.wav"])


def test_each_input_is_transcribed_once(folder: Path) -> None:
    assert list(outputs("a.mp3", "*.mp3", "./a.mp3", str(folder / "a.mp3"), "-", "-")) == ["a.mp3", "standard input"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [("*.aiff", "no file matches"), ("empty", "no audio files"), ("", "empty: expected a file")],
)
def test_a_folder_without_audio_is_an_error(folder: Path, argument: str, message: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(AudioError, match=message):
        find_jobs([argument])


def test_the_error_for_a_url_has_a_command(folder: Path) -> None:
    url = "https://example.org/a.mp3?x=1&y=2"
    with pytest.raises(AudioError) as raised:
        find_jobs([url])
    assert str(raised.value) == f"{url}: URLs are not supported: run curl -sL '{url}' | slipstream transcribe -"


def test_two_inputs_never_share_an_output(folder: Path) -> None:
    (folder / "deep/a.mp3").touch()
    with pytest.raises(AudioError, match="would both be written"):
        check_places(find_jobs(["a.mp3", "deep/a.mp3"]))
    check_places(find_jobs(["a.mp3", "a.wav"]))


def test_a_name_with_two_suffixes_does_not_collide(tmp_path: Path) -> None:
    for name in ("a.wav", "a.mp3", "a.wav.flac"):
        (tmp_path / name).touch()
    jobs = find_jobs([str(tmp_path)])
    check_places(jobs)
    assert sorted(str(job.place) for job in jobs) == ["a.mp3", "a.wav", "a.wav.flac"]


def test_each_channel_has_its_own_output(folder: Path) -> None:
    parts = split_channels(find_jobs(["a.mp3"])[0], 2)
    assert [str(part.output(Path("out"), "txt")) for part in parts] == ["out/a.ch1.txt", "out/a.ch2.txt"]
    check_places(parts)
    assert str(parts[0].output(Path("out"), "txt", partial=True)) == "out/a.ch1.txt.partial"


def test_every_suffix_that_can_be_read_is_found(folder: Path) -> None:
    for suffix in ("mpga", "ac3", "W64", "m2ts", "json", "jpg"):
        (folder / f"deep/e.{suffix}").touch()
    found = {Path(job.name).suffix for job in find_jobs(["deep"])}
    assert found == {".FLAC", ".opus", ".mpga", ".ac3", ".W64", ".m2ts"}
