"""The adapter for eot-bench, with the two functions of the harness that it calls."""

from __future__ import annotations

import asyncio
import sys
import types
from typing import Any

import numpy as np
import pytest
from tests.fakes import ScriptRunner, silence, sound_of
from tests.server.harness import FRAME, RATE, serving

pytest.importorskip("livekit.agents", reason="run `make clients` for the tests of the LiveKit plugin")
from livekit.plugins.slipstream.eot_bench import SlipstreamAdapter

from slipstream.engine.turns import TurnOptions
from slipstream.model.confidence import EndingCurve


@pytest.fixture
def harness(monkeypatch) -> None:
    def prepare(row: dict[str, Any], *, sample_rate: int) -> tuple[bytes, float]:
        assert sample_rate == RATE
        return (row["audio"] * 32767).astype(np.int16).tobytes(), len(row["audio"]) / RATE

    def build(row: dict[str, Any], events: list[dict[str, Any]], *, inference_interval: float) -> list[dict[str, Any]]:
        return [{"id": row["id"], "p_eot": event["p_eot"], "interval": inference_interval} for event in events]

    module = types.ModuleType("eot_harness.streaming_stt")
    module.prepare_pcm16_audio, module.build_event_prediction_rows = prepare, build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "eot_harness", types.ModuleType("eot_harness"))
    monkeypatch.setitem(sys.modules, "eot_harness.streaming_stt", module)


@pytest.mark.usefixtures("harness")
def test_each_frame_has_the_probability_that_ends_turns() -> None:
    curve = EndingCurve(bias=-2.0, heads=(1.0, 0.0, 2.0, 1.0), silence=0.0, silence_seconds=0.4)
    audio_S = np.concatenate([sound_of("fox", 8), silence(8)])
    with serving(turns=TurnOptions(curve=curve)) as server:
        result = asyncio.run(SlipstreamAdapter(url=server.http).predict_turn({"id": "a", "audio": audio_S}))
    expected = [curve.at([n / 8] * 4, 0.0) for n in [0] * 8 + list(range(1, 9))]
    assert [event["p_eot"] for event in result["events"]] == [round(probability, 4) for probability in expected]


@pytest.mark.usefixtures("harness")
def test_each_frame_has_the_probability_of_a_pause_head() -> None:
    audio_S = np.concatenate([sound_of("fox", 8), silence(8)])
    with serving() as server:
        adapter = SlipstreamAdapter(url=server.http, pause_head=2)
        result = asyncio.run(adapter.predict_turn({"id": "a", "audio": audio_S}))
        with pytest.raises(RuntimeError, match="pause_head=9: the model has 4"):
            asyncio.run(SlipstreamAdapter(url=server.http, pause_head=9).predict_turn({"id": "a", "audio": audio_S}))
    assert [event["timestamp"] for event in result["events"]] == [round(n * FRAME / RATE, 6) for n in range(1, 17)]
    assert [event["p_eot"] for event in result["events"]] == [0.0] * 8 + [n / 8 for n in range(1, 9)]
    assert result["prediction_rows"][0] == {"id": "a", "p_eot": 0.0, "interval": 0.1}
    assert result["audio_sec"] == pytest.approx(16 * FRAME / RATE)


@pytest.mark.usefixtures("harness")
def test_turns_that_are_played_at_the_same_time_have_their_own_scores() -> None:
    rows = [{"id": str(n), "audio": np.concatenate([sound_of("fox", 2 + n), silence(12 - n)])} for n in range(12)]

    async def play(adapter: SlipstreamAdapter, together: int) -> list[dict[str, Any]]:
        places = asyncio.Semaphore(together)

        async def one(row: dict[str, Any]) -> dict[str, Any]:
            async with places:
                return await adapter.predict_turn(row)

        return await asyncio.wait_for(asyncio.gather(*map(one, rows)), 60)

    with serving(ScriptRunner(slots=8)) as server:
        adapter = SlipstreamAdapter(url=server.http)
        alone = asyncio.run(play(adapter, 1))
        assert asyncio.run(play(adapter, 4)) == alone
    assert len({str(result["events"]) for result in alone}) == len(rows)


def test_the_adapter_names_its_model_and_languages() -> None:
    assert SlipstreamAdapter(model="tiny").adapter_id == "slipstream/tiny"
    assert SlipstreamAdapter().supports_language("fr")
    assert not SlipstreamAdapter().supports_language("de")
