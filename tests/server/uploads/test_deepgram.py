"""Deepgram's pre-recorded `POST /v1/listen`: transcripts per channel, turns, raw samples and errors."""

from __future__ import annotations

import hashlib
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest
from tests.fakes import ScriptRunner, silence, sound_of, speech
from tests.server.harness import Running, get, serving, solo

from slipstream.connections.keys import KeyRing


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(ScriptRunner(slots=2)) as server:
        yield server


def stereo_flac(left_S: np.ndarray, right_S: np.ndarray) -> bytes:
    samples = max(len(left_S), len(right_S))
    audio_CS = np.stack([np.pad(each_S, (0, samples - len(each_S))) for each_S in (left_S, right_S)])
    frame = av.AudioFrame.from_ndarray((audio_CS.T * 32767).round().astype(np.int16).reshape(1, -1), "s16", "stereo")
    frame.rate = 24_000
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=24_000, layout="stereo")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def post(running: Running, query: str, body: bytes, **headers: str) -> tuple[int, Any, Any]:
    status, content, received = get(f"{running.http}/v1/listen?{query}", body, **headers)
    return status, json.loads(content), received


def test_each_channel_has_its_transcript(running: Running) -> None:
    left_S, right_S = speech(1, words=4), speech(2, words=5)
    body = stereo_flac(left_S, right_S)
    status, answer, headers = post(running, "multichannel=true&punctuate=true&model=script", body)
    assert status == 200
    texts = [channel["alternatives"][0]["transcript"] for channel in answer["results"]["channels"]]
    assert texts == [" ".join(word.text for word in solo(pcm_S)) for pcm_S in (left_S, right_S)]
    metadata = answer["metadata"]
    assert (metadata["channels"], metadata["sha256"]) == (2, hashlib.sha256(body).hexdigest())
    assert headers["dg-request-id"] == metadata["request_id"]
    assert metadata["model_info"][metadata["models"][0]]["name"] == "script"


def test_raw_samples_with_turns(running: Running) -> None:
    audio_S = np.concatenate([silence(15), sound_of("fox", 5), silence(40), sound_of("né?", 4)])
    body = audio_S.astype("<f4").tobytes()
    status, answer, _ = post(running, "encoding=linear32&sample_rate=24000&utterances=true", body)
    assert status == 200
    (channel,) = answer["results"]["channels"]
    assert channel["alternatives"][0]["transcript"] == "fox né"
    assert [turn["transcript"] for turn in answer["results"]["utterances"]] == ["fox", "né"]
    assert all(0 < turn["confidence"] <= 1 and turn["channel"] == 0 for turn in answer["results"]["utterances"])


@pytest.mark.parametrize(
    ("query", "body", "headers", "reason"),
    [
        ("", b"noise" * 100, {}, "not audio"),
        ("model=nova-3", b"x", {}, "unknown model 'nova-3': this server has script"),
        ("callback=http://example.org", b"x", {}, "callback: this server sends results on the connection"),
        ("punctuate=1", b"x", {}, "punctuate='1': expected true or false"),
        ("", b'{"url": "http://example.org"}', {"content_type": "application/json"}, "downloads no files"),
    ],
)
def test_errors_are_deepgrams(running: Running, query: str, body: bytes, headers: dict[str, str], reason: str) -> None:
    status, answer, _ = post(running, query, body, **headers)
    assert (status, answer["err_code"]) == (400, "INVALID_REQUEST")
    assert reason in answer["err_msg"]


def test_a_wrong_method_is_an_error_of_the_client(running: Running) -> None:
    request = urllib.request.Request(f"{running.http}/v1/listen", method="DELETE")
    with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(request, timeout=20):
        pass
    with caught.value as error:
        assert (error.code, json.loads(error.read())["err_code"]) == (405, "INVALID_REQUEST")


def test_a_wrong_key_is_refused() -> None:
    with serving(keys=KeyRing.of(["right"])) as running:
        status, answer, _ = post(running, "", b"x", authorization="Token wrong")
    assert (status, answer["err_code"]) == (401, "INVALID_AUTH")
