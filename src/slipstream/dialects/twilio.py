"""Twilio Media Streams: https://www.twilio.com/docs/voice/media-streams/websocket-messages.

In: `connected`, `start`, `media` with mu-law audio in base64, `dtmf`, `mark`, `stop`. Nothing goes out: Twilio expects
audio here. Each track is a session, and its words go to `/v1/calls?id=CALL_SID`, and to a webhook where `start` has the
custom parameter `webhook` and the server allows it. The custom parameter `model` selects a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from slipstream.dialects.calls import Call, check_id
from slipstream.dialects.formats import PcmStream, check_format
from slipstream.dialects.models import StreamRequest, UnknownModel
from slipstream.dialects.order import Order, Table
from slipstream.dialects.protocol import (
    Action,
    CloseCode,
    Dialect,
    Finish,
    Forward,
    Message,
    Open,
    ProtocolError,
)
from slipstream.dialects.texts import decode_base64, parse_object
from slipstream.engine.options import SessionOptions
from slipstream.events import Event

PATH = "/v1/twilio"
RATE = 8_000
ORDER: Table = {
    "new": {"connected": "new", "start": "open"},
    "open": {"media": "open", "dtmf": "open", "mark": "open", "stop": "ended"},
    "ended": {},
}
KNOWN = {event for events in ORDER.values() for event in events}
"""Other events are ignored, so that Twilio may add some."""
MAX_TRACKS = 4
GAP_SECONDS = 0.2
"""Shorter differences between the timestamps and the audio are jitter."""
SILENCE_SECONDS = 2.0
"""How much of a gap becomes silence, which ends a turn. The rest only moves the times of later words."""


def open_dialect(request: StreamRequest) -> TwilioDialect:
    """Open the dialect for one connection."""
    return TwilioDialect(request)


class TwilioDialect(Dialect):
    """One media stream of a call."""

    name = "twilio"
    long_text = True

    def __init__(self, request: StreamRequest) -> None:
        self._models = request.models
        self._order = Order(ORDER)
        self._call: Call | None = None
        self._pcm: dict[str, PcmStream] = {}
        self._fed: dict[str, int] = {}
        self._skipped: dict[str, float] = {}

    def receive(self, message: Message) -> Iterator[Action]:
        """Yield the actions for a message: see `Dialect.receive`."""
        if isinstance(message, bytes):
            raise ProtocolError("expected text messages, got a binary one")
        fields = parse_object(message, "payload")
        event = fields.get("event")
        if not isinstance(event, str):
            raise ProtocolError(f"event={event!r:.40}: expected the name of an event")
        if event not in KNOWN:
            return
        self._order.follow(event)
        body = fields.get(event, {})
        if not isinstance(body, dict):
            body = {}
        if event == "start":
            yield from self._start(body)
        elif event == "media":
            yield from self._media(body)
        elif event == "dtmf" and self._call is not None:
            yield self._call.publish(
                "dtmf", track=str(body.get("track", ""))[:40], digit=str(body.get("digit", ""))[:1]
            )
        elif event == "stop":
            for channel, pcm in enumerate(self._pcm.values()):
                yield from pcm.rest(channel, last=True)
            yield Finish()

    def handle(self, event: Event, channel: int) -> Iterable[Action]:
        """Publish the messages for an event: see `Dialect.handle`."""
        return self._call.handle(event, channel) if self._call is not None else ()

    def error(self, message: str, code: CloseCode) -> Message | None:
        """Return nothing: Twilio reports an error for a message that it does not know."""
        return None

    # ------------------------------------------------------------------------------------------------------ in detail

    def _start(self, start: dict[str, Any]) -> Iterator[Action]:
        id, tracks = check_id(start.get("callSid")), start.get("tracks")
        if not isinstance(tracks, list) or not 1 <= len(tracks) <= MAX_TRACKS or not _are_names(tracks):
            raise ProtocolError(f"tracks={tracks!r:.80}: expected 1 to {MAX_TRACKS} different names")
        format = start.get("mediaFormat")
        if format != {"encoding": "audio/x-mulaw", "sampleRate": RATE, "channels": 1}:
            raise ProtocolError(f"mediaFormat={format!r:.120}: expected audio/x-mulaw, {RATE} Hz, 1 channel")
        custom = start.get("customParameters")
        custom = custom if isinstance(custom, dict) else {}
        try:
            model = self._models[custom.get("model") and str(custom["model"])]
        except UnknownModel as error:
            raise ProtocolError(str(error)) from error
        self._call = Call(id, tracks)
        if webhook := custom.get("webhook"):
            yield Forward(id, str(webhook))
        yield self._call.publish("start", tracks=tracks, stream=str(start.get("streamSid", ""))[:80], model=model.model)
        for channel, track in enumerate(tracks):
            self._pcm[track] = PcmStream(check_format("mulaw", RATE), model.sample_rate)
            self._fed[track], self._skipped[track] = 0, 0.0
            yield Open(SessionOptions(steps=True, low_latency=True), model.model, channel)

    def _media(self, media: dict[str, Any]) -> Iterator[Action]:
        track = media.get("track")
        if not isinstance(track, str) or track not in self._pcm:
            raise ProtocolError(f"track={track!r:.40}: expected {' or '.join(self._pcm)}")
        pcm, channel, timestamp = self._pcm[track], list(self._pcm).index(track), media.get("timestamp")
        if isinstance(timestamp, str) and timestamp.isascii() and timestamp.isdecimal() and len(timestamp) < 12:
            yield from pcm.audio(b"\xff" * self._gap(track, int(timestamp) / 1000), channel)
        for piece in decode_base64(media.get("payload"), "payload"):
            self._fed[track] += len(piece)
            yield from pcm.audio(piece, channel)

    def _gap(self, track: str, timestamp: float) -> int:
        """The samples of silence before audio of this time; a longer gap moves the times of what follows."""
        gap = timestamp - self._skipped[track] - self._fed[track] / RATE
        if gap < GAP_SECONDS or self._call is None:
            return 0
        silence = round(min(gap, SILENCE_SECONDS) * RATE)
        self._fed[track] += silence
        if gap > SILENCE_SECONDS:
            self._skipped[track] += gap - SILENCE_SECONDS
            channel = self._call.tracks.index(track)
            self._call.skip(channel, self._fed[track] / RATE, gap - SILENCE_SECONDS)
        return silence


def _are_names(tracks: list[Any]) -> bool:
    return all(isinstance(track, str) and 1 <= len(track) <= 40 for track in tracks) and len(set(tracks)) == len(tracks)
