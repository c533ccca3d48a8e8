"""OpenAI's `POST /v1/audio/speech`: a text in, audio out while it is made."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route, request_response
from starlette.types import Receive, Scope, Send

from slipstream.audio.encode import ENCODINGS, StreamEncoder
from slipstream.connections.access import Access
from slipstream.engine.reading import Audio, SpeechEvent
from slipstream.errors import AudioError, ConfigError, Overloaded, TextError
from slipstream.model.script import readable
from slipstream.schema import Section, parse
from slipstream.server.http.openai import read_object
from slipstream.server.http.requests import Guarded
from slipstream.server.speaking import AnySession, AnySpeaker
from slipstream.server.uploads.openai import OpenAIUpload
from slipstream.server.uploads.protocol import UploadError, unavailable

PATH = "/v1/audio/speech"
MAX_CHARACTERS = 4096
"""Of a text, as OpenAI have it."""
MAX_BODY = 64 << 10

Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]


class SpeechRequest(Section):
    """The body of a request."""

    model: str = ""
    input: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
    voice: str | dict[str, str] | None = None
    response_format: Format = "mp3"
    stream_format: Literal["audio", "sse"] = "audio"
    speed: Annotated[float, Field(ge=1, le=1)] = 1.0  # the models have no other
    instructions: str | None = None  # the models take none


def speech_routes(speaker: AnySpeaker | None, access: Access) -> list[BaseRoute]:
    """Return the route. Without a speaker, its response is an error."""

    async def speech(request: Request) -> Response:
        if speaker is None:
            raise UploadError(404, "this server has no text to speech: start it with --speech MODEL")
        asked = await _parse(request)
        if not readable(asked.input).strip():
            raise UploadError(400, "input has no word to speak", "input")
        name = asked.voice.get("id") if isinstance(asked.voice, dict) else asked.voice
        ready, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(ready.set)

        try:
            encoder = StreamEncoder(asked.response_format, speaker.sample_rate)
        except AudioError as error:
            raise UploadError(400, str(error), "response_format") from error
        try:
            voice = await run_in_threadpool(speaker.voice, name)
            session = speaker.open(voice, wake)
            first = await _begin(session, asked.input, ready)
        except Overloaded as error:
            raise unavailable(str(error)) from error
        except TextError as error:
            raise UploadError(400, str(error), "input") from error
        except (AudioError, ConfigError) as error:
            raise UploadError(400, str(error), "voice") from error
        body = _audio(session, first, encoder, ready)
        if asked.stream_format == "sse":
            return SpeechResponse(session, _events(body), media_type="text/event-stream")
        return SpeechResponse(session, body, media_type=ENCODINGS[asked.response_format].media_type)

    return [Route(PATH, Guarded(request_response(speech), access, OpenAIUpload.refuse, counted=True), methods=["POST"])]


class SpeechResponse(StreamingResponse):
    """A response that ends its session, however it ends itself."""

    def __init__(self, session: AnySession, content: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(content, media_type=media_type)
        self._session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._session.cancel()


async def _begin(session: AnySession, text: str, ready: asyncio.Event) -> list[SpeechEvent]:
    """Return the first events. Raises what keeps the session from speaking, before the response begins."""
    try:
        session.feed(text)
        session.end()
        await ready.wait()
        ready.clear()
        return session.poll()
    except BaseException:
        session.cancel()
        raise


async def _parse(request: Request) -> SpeechRequest:
    try:
        return parse(SpeechRequest, await read_object(request, MAX_BODY), "the request")
    except ConfigError as error:
        raise UploadError(400, str(error)) from error


async def _audio(
    session: AnySession, events: list[SpeechEvent], encoder: StreamEncoder, ready: asyncio.Event
) -> AsyncIterator[bytes]:
    """The encoded audio, from the first events."""
    while True:
        for event in events:
            if isinstance(event, Audio) and (data := encoder.encode(event.samples)):
                yield data
                await asyncio.sleep(0)  # a slow reader may have let many frames accumulate
        if session.ended:
            break
        await ready.wait()
        ready.clear()
        events = session.poll()
    if data := encoder.end():
        yield data


async def _events(audio: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The audio as OpenAI's server-sent events."""
    async for data in audio:
        text = json.dumps({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
        yield f"data: {text}\n\n".encode()
    yield b'data: {"type": "speech.audio.done"}\n\n'
