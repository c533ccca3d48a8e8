"""Files that are cut off, in every dialect of uploads: the text of what is there, and a warning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.dialects.test_formats import encoded
from tests.fakes import speech
from tests.server.harness import RATE, Running, get, serving, solo
from tests.server.http.test_uploads import exact, wav
from tests.server.uploads.forms import CONTENT_TYPE, form

from slipstream.server.uploads.protocol import WARNING_HEADER

AUDIO = exact(speech(seed=1, words=12))
KEPT = len(AUDIO) // 2
TEXT = " ".join(word.text for word in solo(AUDIO[:KEPT]))
WHOLE = wav(AUDIO)
CUT = WHOLE[: 44 + 2 * KEPT]
WARNING = f"the upload: its header states {len(AUDIO) / RATE:.1f} s of audio, but only {KEPT / RATE:.1f} s were found"
OGG = encoded("ogg", "libopus", 48_000, seconds=6.0)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving() as running:
        yield running


def openai(running: Running, file: bytes, **fields: str) -> tuple[int, bytes, Any]:
    address = f"{running.http}/v1/audio/transcriptions"
    return get(address, form([("model", "script"), *fields.items()], file), content_type=CONTENT_TYPE)


@pytest.mark.parametrize("format", ["json", "verbose_json"])
def test_json_has_the_warnings(running: Running, format: str) -> None:
    status, body, headers = openai(running, CUT, response_format=format)
    answer = json.loads(body)
    assert (status, answer["text"], answer["warnings"]) == (200, TEXT, [WARNING])
    assert headers[WARNING_HEADER] == WARNING
    status, body, headers = openai(running, WHOLE, response_format=format)
    assert (status, "warnings" in json.loads(body), WARNING_HEADER in headers) == (200, False, False)


@pytest.mark.parametrize("format", ["text", "srt", "vtt"])
def test_other_formats_have_them_in_the_header(running: Running, format: str) -> None:
    status, _, headers = openai(running, CUT, response_format=format)
    assert (status, headers[WARNING_HEADER]) == (200, WARNING)


def test_the_last_event_has_the_warnings(running: Running) -> None:
    status, body, _ = openai(running, CUT, stream="true")
    done = json.loads(body.decode().strip().split("data: ")[-1])
    assert (status, done["type"], done["text"]) == (200, "transcript.text.done", TEXT)
    assert done["warnings"] == [WARNING]


def test_deepgram_has_them_in_its_metadata(running: Running) -> None:
    status, body, headers = get(f"{running.http}/v1/listen", CUT)
    metadata = json.loads(body)["metadata"]
    assert (status, metadata["warnings"]) == (200, [{"type": "audio", "message": WARNING}])
    assert headers[WARNING_HEADER] == WARNING
    assert "warnings" not in json.loads(get(f"{running.http}/v1/listen", WHOLE)[1])["metadata"]


def test_kyutai_has_them_in_the_header(running: Running) -> None:
    status, _, headers = get(f"{running.http}/api/asr-streaming", CUT)
    assert (status, headers[WARNING_HEADER]) == (200, WARNING)


def test_ogg_without_its_end(running: Running) -> None:
    status, body, _ = openai(running, OGG[: len(OGG) // 2])
    assert status == 200
    assert json.loads(body)["warnings"] == [
        "the upload: its last Ogg page is not marked as the end: the file may be cut off"
    ]
    assert "warnings" not in json.loads(openai(running, OGG)[1])


def test_a_file_without_any_audio_left_is_an_error(running: Running) -> None:
    status, body, _ = openai(running, OGG[:100])
    assert (status, json.loads(body)["error"]["param"]) == (400, "file")


def test_the_header_is_one_short_line(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "tracks.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(2)]
        for stream, name in zip(streams, ("first\r\nx-other: 1", "é" * 2000), strict=True):
            stream.metadata["title"] = name
        for stream in streams:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, RATE), np.int16), layout="mono")
            frame.sample_rate = RATE
            container.mux([*stream.encode(frame), *stream.encode(None)])
    status, body, headers = openai(running, path.read_bytes())
    (warning,) = json.loads(body)["warnings"]
    assert (status, "has 2 audio tracks" in warning, "x-other" in headers) == (200, True, False)
    assert len(headers[WARNING_HEADER]) <= 1000
    assert headers[WARNING_HEADER].isprintable()
