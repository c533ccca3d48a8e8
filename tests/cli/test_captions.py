"""`slipstream captions`: files, pipes and the microphone as HLS captions."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.cli.conftest import Loaded, Outcome
from tests.fakes import ScriptRunner, silence, sound_of
from tests.server.harness import serving

from slipstream import audio
from slipstream.audio import InputDevice
from slipstream.cli import captions as command
from slipstream.errors import AudioError

Cli = Callable[..., Outcome]
Sound = Callable[..., Path]
LEVELS = [number / 100 for number in range(10, 60, 2)]  # 25 s, the word of each is its loudness
WORDS = [f"{100 * level:.0f}" for level in LEVELS]


@dataclass(frozen=True)
class Hls:
    """A playlist that was read: its tags, and the cues of each segment as (start, end, text)."""

    tags: dict[str, str]
    durations: list[float]
    maps: list[int]
    segments: list[list[tuple[float, float, str]]]

    @property
    def cues(self) -> list[tuple[float, float, str]]:
        return [cue for segment in self.segments for cue in segment]

    @property
    def last_words(self) -> list[str]:
        """The last word of each state of the screen."""
        return [text.split()[-1] for _, _, text in self.cues]


def read(folder: Path) -> Hls:
    lines = (folder / "captions.m3u8").read_text("utf-8").splitlines()
    assert lines[0] == "#EXTM3U"
    tags = {name: value for line in lines if line.startswith("#EXT-") for name, _, value in [line.partition(":")]}
    durations = [float(line[len("#EXTINF:") : -1]) for line in lines if line.startswith("#EXTINF:")]
    assert all(round(seconds) <= int(tags["#EXT-X-TARGETDURATION"]) for seconds in durations)
    parts = [(folder / line).read_text("utf-8") for line in lines if not line.startswith("#")]
    assert len(parts) == len(durations)
    maps, segments = [], []
    for text in parts:
        head, *blocks = text.rstrip("\n").split("\n\n")
        match = re.fullmatch(r"WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:(\d+),LOCAL:00:00:00\.000", head)
        assert match is not None, head
        maps.append(int(match[1]))
        segments.append([cue(block) for block in blocks])
    return Hls(tags, durations, maps, segments)


def cue(block: str) -> tuple[float, float, str]:
    times, text = block.split("\n", 1)
    match = re.fullmatch(r"(\S+) --> (\S+) position:10% align:start", times)
    assert match is not None, times

    def seconds(stamp: str) -> float:
        hours, minutes, rest = stamp.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(rest)

    assert len(text.split("\n")) <= 2
    assert all(0 < len(line) <= 32 for line in text.split("\n"))
    return seconds(match[1]), seconds(match[2]), text


def test_a_file(cli: Cli, loaded: Loaded, sound: Sound, tmp_path: Path) -> None:
    outcome = cli("captions", sound("talk.wav", LEVELS), "-o", tmp_path / "out", "--start-time", "1.4")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.endswith(f"{tmp_path / 'out' / 'captions.m3u8'}: 5 segments\n")
    assert loaded.transcriber.closed
    assert loaded.arguments["mode"] == "recordings"
    found = read(tmp_path / "out")
    assert "#EXT-X-ENDLIST" in found.tags
    assert found.tags["#EXT-X-PLAYLIST-TYPE"] == "EVENT"
    assert found.durations == [6, 6, 6, 6, 1.0]
    assert found.maps == [126_000] * 5
    assert list(dict.fromkeys(found.last_words)) == WORDS
    starts = {text.split()[-1]: start for start, _, text in reversed(found.cues)}
    assert [starts[word] for word in WORDS] == list(range(25)), "in step with the speech"
    assert not list((tmp_path / "out").glob(".*")), "nothing unfinished is left"

    outcome = cli("captions", sound("short.wav", [0.5]), "-o", tmp_path / "out")
    assert f"{tmp_path / 'out' / 'captions.m3u8'}: replaces earlier captions" in outcome.err
    assert read(tmp_path / "out").last_words == ["50"]


def test_ffmpeg_reads_the_captions(cli: Cli, loaded: Loaded, sound: Sound, tmp_path: Path) -> None:
    cli("captions", sound("talk.wav", LEVELS), "-o", tmp_path, "--segment", "2.5")
    # Newer versions of FFmpeg accept only names of media files unless they are asked to accept others.
    options = {"allowed_extensions": "ALL", "allowed_segment_extensions": "ALL", "extension_picky": "0"}
    with av.open(str(tmp_path / "captions.m3u8"), options=options) as container:
        packets = [packet for packet in container.demux() if packet.size]
        got = [
            (float(packet.pts * packet.time_base), float(packet.duration * packet.time_base), bytes(packet).decode())
            for packet in packets
            if packet.pts is not None and packet.duration is not None and packet.time_base is not None
        ]
    assert got == [(start, pytest.approx(end - start), text) for start, end, text in read(tmp_path).cues]


def test_standard_input_is_live(cli: Cli, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pcm = np.repeat(np.array(LEVELS, "<f4"), 8000).tobytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pcm)))
    outcome = cli("captions", "-", "--raw", "pcm_f32le", "--raw-rate", "8000", "-o", tmp_path)
    assert outcome.code == 0
    found = read(tmp_path)
    assert loaded.arguments["mode"] == "live"
    delay = loaded.transcriber.delay + 1
    assert found.cues[0][0] == delay
    assert len({text for _, _, text in found.cues}) == len(WORDS)
    assert sum(found.durations) == pytest.approx(24 + 1 + delay), "the last word is shown for a second"

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pcm)))
    cli("captions", "-", "--raw", "pcm_f32le", "--raw-rate", "8000", "-o", tmp_path, "--delay", "3")
    assert read(tmp_path).cues[0][0] == 3


def test_a_sliding_window(
    cli: Cli, loaded: Loaded, sound: Sound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    playlists = []
    write_file = command.write_file

    def watch(path: Path, text: str) -> None:
        write_file(path, text)
        if path.name == "captions.m3u8":
            playlists.append(read(tmp_path))  # fails if a listed segment is missing or not complete

    monkeypatch.setattr(command, "write_file", watch)
    cli("captions", sound("talk.wav", LEVELS), "-o", tmp_path, "--segment", "1", "--window", "3")
    assert len(playlists) == 1 + 25 + 1
    assert [int(playlist.tags["#EXT-X-MEDIA-SEQUENCE"]) for playlist in playlists[:-1]] == [0, 0, 0, *range(23)]
    assert [len(playlist.durations) for playlist in playlists] == [0, 1, 2, *[3] * 24]
    assert not any("#EXT-X-PLAYLIST-TYPE" in playlist.tags for playlist in playlists)
    assert ["#EXT-X-ENDLIST" in playlist.tags for playlist in playlists] == [False] * 26 + [True]
    assert sorted(path.name for path in tmp_path.glob("*.vtt")) == [f"captions-{n:06}.vtt" for n in range(18, 25)]


def test_the_microphone_until_ctrl_c(cli: Cli, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(device: Any = None) -> Iterator[np.ndarray]:
        assert device == "USB"
        for second in range(1, 100):
            if second == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield np.full((1, 24_000), second / 10, np.float32)

    monkeypatch.setattr(audio, "microphone", record)
    monkeypatch.setattr(audio, "input_devices", lambda: [InputDevice(1, "USB", 1, 48_000, True)])
    outcome = cli("captions", "-o", tmp_path, "--microphone", "USB")
    assert outcome.code == 0
    assert read(tmp_path).cues[-1][2] == "10 20 30"
    assert "#EXT-X-ENDLIST" in read(tmp_path).tags


def test_an_interrupted_file_has_the_captions_so_far(cli: Cli, loaded: Loaded, sound: Sound, tmp_path: Path) -> None:
    def interrupt(index: int) -> None:
        if index == 100:
            os.kill(os.getpid(), signal.SIGTERM)

    loaded.transcriber.on_step = interrupt
    outcome = cli("captions", sound("talk.wav", LEVELS), "-o", tmp_path)
    assert outcome.code == 128 + signal.SIGTERM
    assert "Interrupted. The captions so far are written." in outcome.err
    found = read(tmp_path)
    assert "#EXT-X-ENDLIST" in found.tags
    assert found.last_words[-1] in WORDS[7:]


def test_an_error_ends_the_playlist(cli: Cli, loaded: Loaded, sound: Sound, tmp_path: Path) -> None:
    def crash(index: int) -> None:
        if index == 100:
            raise AudioError("talk.wav: the file is damaged")

    loaded.transcriber.on_step = crash
    outcome = cli("captions", sound("talk.wav", LEVELS), "-o", tmp_path)
    assert (outcome.code, outcome.err.splitlines()[-1]) == (1, "error: talk.wav: the file is damaged")
    found = read(tmp_path)
    assert "#EXT-X-ENDLIST" in found.tags
    assert found.last_words[-1] == WORDS[6]


def test_an_input_or_a_server_that_fails_at_the_start_keeps_earlier_captions(
    cli: Cli, loaded: Loaded, sound: Sound, tmp_path: Path
) -> None:
    talk, folder = sound("talk.wav", LEVELS), tmp_path / "out"
    (tmp_path / "damaged.wav").write_bytes(b"RIFF")
    cli("captions", talk, "-o", folder)
    before = (folder / "captions.m3u8").read_text()
    for arguments in [("gone.wav",), (tmp_path / "damaged.wav",), (talk, "--server", "http://127.0.0.1:9")]:
        outcome = cli("captions", *arguments, "-o", folder)
        assert outcome.code == 1
        assert "replaces earlier captions" not in outcome.err
        assert (folder / "captions.m3u8").read_text() == before
    assert cli("captions", "gone.wav", "-o", tmp_path / "new").code == 1
    assert not (tmp_path / "new").exists()


def test_a_server(cli: Cli, tmp_path: Path) -> None:
    pcm_S = np.concatenate([silence(4), sound_of("fox", 5), silence(10), sound_of("dog", 5), silence(60)])
    (tmp_path / "audio").write_bytes(pcm_S.astype("<f4").tobytes())
    with serving(ScriptRunner()) as server:
        outcome = cli(
            "captions",
            tmp_path / "audio",
            "--raw",
            "pcm_f32le",
            "-o",
            tmp_path,
            "--server",
            server.http,
            "--segment",
            2,
        )
    assert outcome.code == 0
    texts = [text for _, _, text in read(tmp_path).cues]
    assert list(dict.fromkeys(texts)) == ["fox", "fox dog"]


def unframed(message: str) -> str:
    """A message without the frame that Typer draws around it."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", message).split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.wav", "--microphone", "1"), "the input is a.wav: omit it to use a microphone"),
        (("--raw", "mulaw"), "a microphone has neither encodings nor tracks"),
        (("--track", "2"), "a microphone has neither encodings nor tracks"),
        (("-", "--raw-rate", "8000"), "it applies to audio without a header only: add --raw"),
        (("a.wav", "--server", "http://127.0.0.1:9", "--threads", "2"), "--server uses the model of the server"),
        (("a.wav", "--server", "http://127.0.0.1:9", "--quantize", "int8"), "--server uses the model of the server"),
        (("a.wav", "--window", "2"), "greater than or equal to 3"),
    ],
)
def test_wrong_usage(cli: Cli, loaded: Loaded, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    outcome = cli("captions", *arguments, "-o", tmp_path / "out")
    assert outcome.code == 2
    assert message in unframed(outcome.err)
    assert loaded.model is None
    assert not (tmp_path / "out").exists()


def test_inputs_that_cannot_be_captioned(
    cli: Cli, loaded: Loaded, sound: Sound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.wav", "b.wav"):
        sound(name, [0.5])
    assert "has 2 files: pass one" in unframed(cli("captions", tmp_path, "-o", tmp_path / "out").err)
    assert cli("captions", sound("c.wav", [0.5]), "-o", tmp_path / "c.wav").code == 2
    monkeypatch.setattr(audio, "input_devices", list)
    assert "no microphone found" in cli("captions", "-o", tmp_path / "out").err
