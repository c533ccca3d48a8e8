"""Ray Serve on this machine: two replicas of the built-in model, of which one is killed."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("ray.serve", reason="needs the extra ray: make ray")
from benchmarks.ray_serve import RATE, replicas, transcribe_all

import slipstream.ray
from slipstream.audio import load
from slipstream.client import ServerError, find_replica, open_stream
from slipstream.errors import ConfigError
from slipstream.ray.serve import replicas_for_streams

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
SAMPLE = Path(__file__).parents[2] / "examples" / "sample.opus"


@pytest.fixture(scope="module")
def address(cluster) -> Iterator[str]:
    with replicas(slots=4, port=8766) as address:
        yield address


def test_every_stream_continues_when_a_replica_is_killed(address) -> None:
    audio_S = load(SAMPLE, RATE)[: 5 * RATE]
    [whole] = asyncio.run(transcribe_all(address, audio_S, 1, None))
    outcomes = asyncio.run(transcribe_all(address, audio_S, 6, kill_at=0.4))
    assert any(outcome.connections > 1 for outcome in outcomes)
    # With context from the beginning of the recording, a new engine writes the same words.
    assert [outcome.words for outcome in outcomes] == [whole.words] * 6


def test_routes_and_sessions(address) -> None:
    with urllib.request.urlopen(f"{address}/v1/info", timeout=60) as response:
        assert json.load(response)["model"] == "tiny"
    replica = find_replica(address)
    assert replica != address
    with open_stream(replica, sample_rate=RATE) as stream:
        next(iter(stream))
        assert stream.model == "tiny"
    with pytest.raises(ServerError, match="has no replicas"):
        find_replica(replica)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="replicas="):
        slipstream.ray.app(replicas=(3, 2))
    with pytest.raises(ConfigError, match="slots=0"):
        slipstream.ray.app(slots=0)
    with pytest.raises(ConfigError, match="needs keys"):
        slipstream.ray.app(host="0.0.0.0")


def test_replicas_follow_the_streams() -> None:
    class Config:
        def get_target_ongoing_requests(self) -> float:
            return 5.6

    context = SimpleNamespace(aggregated_metrics={"streams": {"a": 8.0, "b": 5.0}}, config=Config())
    assert replicas_for_streams(context) == (3, {})  # type: ignore[arg-type]
