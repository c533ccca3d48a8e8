"""An adapter for LiveKit's `eot-bench`: the score is the probability with which the server ends turns.

    eot-harness predict-streaming --path livekit/eot-bench-data --name en --split validation \
        --adapter livekit.plugins.slipstream.eot_bench:SlipstreamAdapter --output-dir output
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import numpy as np

from slipstream.client import open_async_stream
from slipstream.events import Step

from .stt import DEFAULT_URL

SAMPLE_RATE = 24_000
CHUNK_SAMPLES = 24_000
LANGUAGES = frozenset({"en", "fr"})


class SlipstreamAdapter:
    """Plays each turn to a Slipstream server, in the interface of `eot_harness`.

    Args:
        url: Address of the server. The default is `SLIPSTREAM_URL`, or http://127.0.0.1:8080.
        model: One of the server's models; None is its default.
        pause_head: A pause head that scores instead; head 2 predicts that no new word follows within 2 s.
        languages: Languages of the model, as two letters.
        concurrency: Turns that the harness plays at the same time.
    """

    display_name = "Slipstream"

    def __init__(
        self,
        *,
        url: str | None = None,
        model: str | None = None,
        pause_head: int | None = None,
        languages: frozenset[str] = LANGUAGES,
        concurrency: int = 1,
    ) -> None:
        self.url = url or os.environ.get("SLIPSTREAM_URL", DEFAULT_URL)
        self.model, self.pause_head, self.languages, self.concurrency = model, pause_head, languages, concurrency

    @property
    def adapter_id(self) -> str:
        """Name of the run."""
        return f"slipstream/{self.model or 'default'}"

    def supports_language(self, lang_code: str) -> bool:
        """Return whether the model recognises a language."""
        return lang_code in self.languages

    async def predict_turn(self, row: dict[str, Any], *, inference_interval: float = 0.1) -> dict[str, Any]:
        """Return the scores of one turn of the data set."""
        from eot_harness.streaming_stt import build_event_prediction_rows, prepare_pcm16_audio

        pcm, seconds = prepare_pcm16_audio(row, sample_rate=SAMPLE_RATE)
        samples_S = np.frombuffer(pcm, np.int16)
        events: list[dict[str, Any]] = []
        key = os.environ.get("SLIPSTREAM_API_KEY")
        async with open_async_stream(self.url, sample_rate=SAMPLE_RATE, key=key, model=self.model) as stream:

            async def send() -> None:
                for start in range(0, len(samples_S), CHUNK_SAMPLES):
                    await stream.send(samples_S[start : start + CHUNK_SAMPLES])
                await stream.finish()

            async def read() -> None:
                async for event in stream:
                    if not isinstance(event, Step):
                        continue
                    time = round(event.index * stream.frame_seconds, 6)
                    events.append({"event": "Step", "timestamp": time, "p_eot": self._score(event)})

            await asyncio.gather(send(), read())  # the server drops steps for a client that does not read
        rows = build_event_prediction_rows(row, events, inference_interval=inference_interval)
        return {"id": row["id"], "audio_sec": seconds, "events": events, "prediction_rows": rows}

    def _score(self, step: Step) -> float:
        if self.pause_head is None:
            if step.end_of_turn is None:
                raise RuntimeError("the server sends no end_of_turn: use a model with pause heads")
            return step.end_of_turn
        if self.pause_head >= len(step.pause):
            raise RuntimeError(f"pause_head={self.pause_head}: the model has {len(step.pause)} pause heads")
        return step.pause[self.pause_head]
