"""Deepgram's own client, unchanged, against a live server: `/v1/listen` and Flux."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.fakes import ScriptRunner, silence, sound_of, speech
from tests.server.harness import Running, serving, solo

from slipstream.connections.keys import KeyRing

deepgram = pytest.importorskip("deepgram", reason="deepgram-sdk is not installed: make clients")
import httpx  # noqa: E402
from deepgram.core.events import EventType  # noqa: E402
from deepgram.errors import BadRequestError  # noqa: E402
from websockets.exceptions import InvalidStatus  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the client's own imports
RATE = 24_000
V1 = {"model": "script", "encoding": "linear16", "sample_rate": RATE, "punctuate": True, "interim_results": True}
RAW = {"additional_query_parameters": {"sample_rate": RATE}}
FLUX = {"model": "script", "encoding": "linear16", "sample_rate": RATE}


def pcm(audio_S: np.ndarray) -> bytes:
    return (audio_S * 32767).round().astype("<i2").tobytes()


def client(running: Running, key: str = "any", http: Any = None) -> Any:
    environment = deepgram.DeepgramClientEnvironment(
        base=running.http, production=running.ws, agent=running.ws, agent_rest=running.http
    )
    return deepgram.DeepgramClient(api_key=key, environment=environment, httpx_client=http)


@pytest.fixture
def media(running: Running) -> Iterator[Any]:
    with httpx.Client() as http:
        yield client(running, http=http).listen.v1.media


@pytest.fixture
def running() -> Iterator[Running]:
    with serving(ScriptRunner(slots=2)) as server:
        yield server


def talk(connect: Any, speak: Callable[[Any], None]) -> list[Any]:
    """Run one connection with a thread that listens, as Deepgram's examples do."""
    received: list[Any] = []
    with connect as socket:
        socket.on(EventType.MESSAGE, received.append)
        listening = threading.Thread(target=socket.start_listening)
        listening.start()
        speak(socket)
        listening.join(20)
        assert not listening.is_alive()
    return received


def final(received: list[Any]) -> str:
    texts = [one.channel.alternatives[0].transcript for one in received if one.type == "Results" and one.is_final]
    return " ".join(filter(None, texts))


def turns(received: list[Any], event: str = "EndOfTurn") -> list[str]:
    return [one.transcript for one in received if one.type == "TurnInfo" and one.event == event]


def expected(audio_S: np.ndarray) -> str:
    return " ".join(word.text for word in solo(audio_S))


def unpaced(audio: bytes) -> Callable[[Any], None]:
    def speak(socket: Any) -> None:
        for start in range(0, len(audio), 4800):
            socket.send_media(audio[start : start + 4800])
        socket.send_close_stream()

    return speak


def paced(audio: bytes) -> Callable[[Any], None]:
    def speak(socket: Any) -> None:
        for start in range(0, len(audio), 4800):
            socket.send_media(audio[start : start + 4800])
            time.sleep(0.1)
        socket.send_close_stream()

    return speak


@pytest.mark.parametrize("pace", [unpaced, paced])
def test_v1_streams_and_ends(running: Running, pace: Any) -> None:
    audio_S = np.concatenate([sound_of("fox", 5), sound_of("Saint-Malo,", 4), silence(4), sound_of("dog", 3)])
    received = talk(client(running).listen.v1.connect(**V1, vad_events=True), pace(pcm(audio_S)))
    assert final(received) == "fox Saint-Malo, dog"
    assert received[0].type == "SpeechStarted"
    assert {type(one).__name__ for one in received} == {
        "ListenV1Results",
        "ListenV1SpeechStarted",
        "ListenV1Metadata",
    }
    assert all(0 < word.confidence <= 1 for one in received[1:-1] for word in one.channel.alternatives[0].words)
    assert received[-1].duration == pytest.approx(len(audio_S) / 24_000, abs=0.01)


def test_v1_finalizes(running: Running) -> None:
    def speak(socket: Any) -> None:
        socket.send_keep_alive()
        for word in ("fox", "dog"):
            socket.send_media(pcm(sound_of(word, 5)))
            socket.send_finalize()
        socket.send_close_stream()

    received = talk(client(running).listen.v1.connect(**V1), speak)
    finalized = [one for one in received if one.type == "Results" and one.from_finalize]
    assert [one.channel.alternatives[0].transcript for one in finalized] == ["fox", "dog"]


def test_v1_reconnects_and_reports_errors(running: Running) -> None:
    audio_S = speech(3, words=4)
    sdk = client(running)
    for _ in range(2):
        assert final(talk(sdk.listen.v1.connect(**V1), unpaced(pcm(audio_S)))) == expected(audio_S)
    with pytest.raises(InvalidStatus) as refused, sdk.listen.v1.connect(**{**V1, "encoding": "speex"}):
        pass
    assert refused.value.response.status_code == 400
    closed: list[Any] = []
    with sdk.listen.v1.connect(model="script") as socket:
        socket.on(EventType.ERROR, closed.append)
        socket.send_media(b"this is no audio")
        socket.start_listening()
    assert closed[0].rcvd.code == 1008
    assert closed[0].rcvd.reason.startswith("DATA-0000")


def test_flux_turns_with_eager_ends(running: Running) -> None:
    audio_S = np.concatenate([sound_of("fox", 5), silence(30), sound_of("dog", 4), silence(30)])
    connect = client(running).listen.v2.connect(**FLUX, eager_eot_threshold=0.4, eot_threshold=0.8)
    received = talk(connect, paced(pcm(audio_S)))
    assert received[0].type == "Connected"
    assert turns(received) == ["fox", "dog"]
    assert turns(received, "EagerEndOfTurn") == ["fox", "dog"]
    assert len(turns(received, "Update")) > 5


def test_flux_unpaced_and_reconnected(running: Running) -> None:
    audio_S = speech(4, words=6)
    for _ in range(2):
        received = talk(client(running).listen.v2.connect(**FLUX), unpaced(pcm(audio_S)))
        assert " ".join(turns(received)) == expected(audio_S)


def test_flux_is_configured_and_forced(running: Running) -> None:
    def speak(socket: Any) -> None:
        socket.send_configure({"type": "Configure", "thresholds": {"eot_threshold": 1.0}, "keyterms": ["fox"]})
        socket.send_media(pcm(sound_of("fox", 5)))
        socket.send_force_end_turn()
        socket.send_media(pcm(sound_of("dog", 5)))
        socket.send_close_stream()

    received = talk(client(running).listen.v2.connect(**FLUX), speak)
    (success,) = [one for one in received if one.type == "ConfigureSuccess"]
    assert success.thresholds.eot_threshold == 1.0
    assert turns(received) == ["fox", "dog"]


def test_flux_reports_errors(running: Running) -> None:
    with pytest.raises(InvalidStatus) as refused, client(running).listen.v2.connect(**FLUX, eot_threshold=0.1):
        pass
    assert refused.value.response.status_code == 400
    with client(running).listen.v2.connect(**FLUX) as socket:
        assert socket.recv().type == "Connected"
        socket.send_configure({"type": "Unknown"})
        error = socket.recv()
    assert (error.type, error.code) == ("Error", "UNPARSABLE_CLIENT_MESSAGE")


def test_pre_recorded(media: Any) -> None:
    audio_S = speech(6, words=5)
    for _ in range(2):
        response = media.transcribe_file(
            request=pcm(audio_S),
            model="script",
            encoding="linear16",
            punctuate=True,
            utterances=True,
            request_options=RAW,
        )
        assert response.results.channels[0].alternatives[0].transcript == expected(audio_S)
        assert " ".join(turn.transcript for turn in response.results.utterances) == expected(audio_S)
        assert response.metadata.duration == pytest.approx(len(audio_S) / 24_000, abs=0.01)


def test_pre_recorded_errors(media: Any) -> None:
    for fail in (
        lambda: media.transcribe_file(request=b"no audio", model="script"),
        lambda: media.transcribe_url(url="http://example.org/talk.wav", model="script"),
    ):
        with pytest.raises(BadRequestError) as refused:
            fail()
        assert refused.value.status_code == 400


def test_a_key_is_required_and_sent() -> None:
    with serving(ScriptRunner(), keys=KeyRing.of(["secret"])) as running:
        audio_S = speech(5, words=3)
        assert final(talk(client(running, "secret").listen.v1.connect(**V1), unpaced(pcm(audio_S)))) == expected(
            audio_S
        )
        for connect in (client(running, "wrong").listen.v1.connect(**V1), client(running).listen.v2.connect(**FLUX)):
            with pytest.raises(InvalidStatus) as refused, connect:
                pass
            assert refused.value.response.status_code == 401
