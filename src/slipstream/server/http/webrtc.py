"""WebRTC: WHIP (RFC 9725) and the calls of OpenAI's Realtime protocol. Needs the extra `webrtc`.

A call is a stream whose audio comes from the track and whose messages pass the data channel, or, of a WHIP client
without one, server-sent events.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route, request_response

from slipstream.audio import RawFormat
from slipstream.connections.access import Access, Refused
from slipstream.connections.paced import CLOSE_SECONDS, LOST
from slipstream.dialects.models import StreamRequest
from slipstream.dialects.plain import PlainDialect, check_names, parse_hints
from slipstream.dialects.protocol import Close, CloseCode, Dialect, Message
from slipstream.dialects.realtime.transcription import TranscriptionDialect
from slipstream.server.http.requests import Guarded
from slipstream.server.http.webrtc_limits import BODY_BYTES, Candidates, Watch, refusal
from slipstream.server.streams.outbox import Socket
from slipstream.server.streams.stream import LiveStream
from slipstream.server.uploads.multipart import MultipartForm

if TYPE_CHECKING:
    from aiortc import MediaStreamTrack, RTCDataChannel, RTCPeerConnection

CALLS_PATH, WHIP_PATH = "/v1/realtime/calls", "/v1/whip"
FORMAT = RawFormat("pcm_s16le", 48_000)
"""Of a track's audio, as the dialects get it: the rate of Opus."""
MOST_CALLS = 256
"""Calls at the same time. Each of them has a UDP socket per network interface."""
UNSENT_BYTES = 1 << 16
"""Bytes in the data channel from which on a client reads too slowly."""
WAITING_MESSAGES = 3000
"""Most messages that wait while the session has no room: a minute of audio."""
CONNECT_SECONDS = 30.0
WATCH_SECONDS = 0.1
"""How often a call is checked."""
OFFER_SECONDS = 0.04
"""Least time between two offers: an answer takes 5 to 10 ms of the event loop."""

OpenStream: TypeAlias = Callable[[Request, Callable[[StreamRequest], Dialect], Socket], LiveStream]
"""Makes the stream of a call. Raises `Refused`."""

logger = logging.getLogger(__name__)


class Call:
    """One WebRTC connection, as the socket of its stream.

    Args:
        peer: The connection.
        first: The first message of the client, if the offer has it.
        last: The message that means the end of the track, if any.
        over: Called when the connection is closed.
    """

    def __init__(
        self, peer: RTCPeerConnection, first: str | None, last: str | None, over: Callable[[], None] = lambda: None
    ) -> None:
        self.stream: LiveStream
        self._peer, self._first, self._last, self._over = peer, first, last, over
        self._watch = Watch(peer)
        self._send: Callable[[str], None] | None = None
        self._channel: RTCDataChannel | None = None
        self._events: asyncio.Queue[str | None] | None = None
        self._inbox: deque[Message] = deque()
        self._begun = self._paused = self._ended = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._answering = asyncio.Lock()
        self.client_code, self.sent_reason = LOST, ""
        peer.on("track", self._track_came)
        peer.on("datachannel", self._channel_came)
        peer.on("connectionstatechange", self._state_changed)

    async def answer(self, offer: str) -> str:
        """Return the answer to an offer, both as SDP. Raises `Refused` for an invalid one, or one without audio."""
        from aiortc import RTCSessionDescription

        self._later(self._watch_over())
        try:
            async with self._answering:
                await self._peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
                kinds = [transceiver.kind for transceiver in self._peer.getTransceivers()]
                for transceiver in self._peer.getTransceivers():
                    transceiver.direction = "recvonly" if transceiver.kind == "audio" else "inactive"
                await self._peer.setLocalDescription(await self._peer.createAnswer())
        except Exception as error:  # whatever a parser of damaged SDP raises
            raise Refused(400, "the body is not an SDP offer that can be answered") from error
        if "audio" not in kinds:
            raise Refused(400, "the SDP offer has no audio")
        return self._peer.localDescription.sdp

    def hang_up(self) -> None:
        """End the call for its client: with the remaining text where the dialect has a message for that."""
        self.client_code = 1000
        if self._last is not None:
            self._take(self._last)
        else:
            self.abort()

    async def events(self) -> AsyncIterator[str]:
        """Yield the messages as server-sent events, to the end of the call."""
        queue = self._events = asyncio.Queue()
        self._open(queue.put_nowait)
        while (message := await queue.get()) is not None:
            yield f"data: {message}\n\n"

    @property
    def begun(self) -> bool:
        """Whether it has connected; until then it is only an offer."""
        return self._begun

    @property
    def has_reader(self) -> bool:
        """Whether its messages are read already."""
        return self._send is not None

    # ------------------------------------------------------------------------------------- what the stream calls

    @property
    def congested(self) -> bool:
        if self._channel is not None:
            return self._channel.bufferedAmount > UNSENT_BYTES
        return self._events is None or self._events.qsize() > WAITING_MESSAGES

    @property
    def behind(self) -> bool:
        return bool(self._inbox)

    @property
    def gone(self) -> bool:
        return self._ended

    def send(self, message: Message) -> None:
        closed = self._channel is not None and self._channel.readyState != "open"  # by the client; the call ends soon
        if self._send is not None and not self._ended and not closed:
            self._send(message if isinstance(message, str) else message.decode())

    def ping(self) -> None:
        """Do nothing: ICE has its own."""

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            asyncio.get_running_loop().call_soon(self._take_waiting)

    def close(self, close: Close) -> None:
        self.sent_reason = close.reason
        self._later(self._end(int(close.code)))

    def cut_off_later(self) -> None:
        asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort)

    def abort(self) -> None:
        self._later(self._end(None))

    # -------------------------------------------------------------------------------------------------- in detail

    def _track_came(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            self._later(self._read(track))

    def _channel_came(self, channel: RTCDataChannel) -> None:
        if self.has_reader:
            return
        self._channel = channel
        channel.on("message", self._message_came)
        channel.on("bufferedamountlow", lambda: self.stream.writable())
        channel.bufferedAmountLowThreshold = UNSENT_BYTES // 2
        self._open(channel.send)

    def _message_came(self, message: str | bytes) -> None:
        self._end_for(self._watch.message())
        self._take(message if isinstance(message, str) else "")  # binary ones are no audio here, and no JSON either

    def _open(self, send: Callable[[str], None]) -> None:
        self._send = send
        self.stream.writable()

    def _state_changed(self) -> None:
        if self._peer.connectionState == "connected":
            self._begin()
        elif self._peer.connectionState in ("failed", "closed"):
            self.abort()

    def _begin(self) -> None:
        """Open the stream, once there is a connection: an offer alone takes no slot."""
        if not self._begun and not self._ended:
            self._begun = True
            self.stream.opened()
            if self._first is not None:
                self.stream.receive(self._first)

    async def _watch_over(self) -> None:
        """End a call that does not connect in time, or whose client sends too much."""
        began = time.monotonic()
        while not self._ended:
            await asyncio.sleep(WATCH_SECONDS)
            if self._peer.connectionState != "connected":
                if time.monotonic() - began > CONNECT_SECONDS:
                    self.abort()
            else:
                self._end_for(self._watch.look())

    def _end_for(self, reason: str | None) -> None:
        """End the call immediately if there is a reason for it."""
        if reason is not None and not self._ended:
            self.sent_reason = reason
            self._later(self._end(CloseCode.POLICY_VIOLATION))

    async def _read(self, track: MediaStreamTrack) -> None:
        """Pass the audio of the track to the stream."""
        from aiortc.mediastreams import MediaStreamError
        from av import AudioFrame, AudioResampler

        resampler = AudioResampler("s16", "mono", FORMAT.sample_rate)
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                break
            assert isinstance(frame, AudioFrame)
            for part in resampler.resample(frame):
                self._take(part.to_ndarray().astype("<i2").tobytes())
        if self._last is not None:
            self._take(self._last)

    def _take(self, message: Message) -> None:
        self._begin()
        if self._ended:
            return
        if self._paused or self._inbox:
            self._inbox.append(message)
            if len(self._inbox) > WAITING_MESSAGES:
                self.abort()
        else:
            self.stream.receive(message)

    def _take_waiting(self) -> None:
        while self._inbox and not self._paused and not self._ended:
            self.stream.receive(self._inbox.popleft())

    async def _end(self, code: int | None) -> None:
        """Close the connection. `code`: the server's close code; None if the client or the network ended it."""
        if self._ended:
            return
        self._ended = True
        self.stream.closed(code)
        if self._events is not None:
            self._events.put_nowait(None)
        for _ in range(round(CLOSE_SECONDS / 0.05)):
            if code in (None, CloseCode.POLICY_VIOLATION) or self._channel is None or not self._channel.bufferedAmount:
                break
            await asyncio.sleep(0.05)
        try:
            async with self._answering:  # aiortc opens sockets for an answer, and would not close them
                await self._peer.close()
        finally:
            self._over()
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Calls:
    """The calls of a server, and the routes that open and end them."""

    def __init__(self, open_stream: OpenStream) -> None:
        self._open_stream = open_stream
        self._calls: dict[str, Call] = {}
        self._turn = asyncio.Lock()
        self._candidates = Candidates()

    def routes(self, access: Access) -> list[BaseRoute]:
        """Return the routes, behind the access check."""

        def route(path: str, handler: Callable[[Request], Coroutine[Any, Any, Response]], method: str) -> Route:
            endpoint = Guarded(request_response(handler), access, secrets=path == CALLS_PATH)
            return Route(path, endpoint, methods=[method])

        return [
            route(CALLS_PATH, self._realtime, "POST"),
            route(f"{CALLS_PATH}/{{id}}/hangup", self._hang_up, "POST"),
            route(WHIP_PATH, self._whip, "POST"),
            route(f"{WHIP_PATH}/{{id}}", self._hang_up, "DELETE"),
            route(f"{WHIP_PATH}/{{id}}", self._events, "GET"),
        ]

    async def close(self) -> None:
        """Close all calls. Waits until their connections are closed."""
        for call in list(self._calls.values()):
            call.abort()
        while self._calls:
            await asyncio.sleep(0.02)

    async def _realtime(self, request: Request) -> Response:
        offer, session = await _offer(request)
        update = f'{{"type":"session.update","session":{session}}}' if session else None
        call = await self._open(request, lambda opening: TranscriptionDialect(opening, media=FORMAT), first=update)
        return await self._answer(request, call, offer, CALLS_PATH)

    async def _whip(self, request: Request) -> Response:
        offer, _ = await _offer(request)

        def plain(opening: StreamRequest) -> Dialect:
            check_names(opening)
            info = opening.models[opening.get("model")]
            return PlainDialect(FORMAT, info, opening.id, hints=parse_hints(opening, info))

        call = await self._open(request, plain, last='{"type":"close"}')
        return await self._answer(request, call, offer, WHIP_PATH)

    async def _hang_up(self, request: Request) -> Response:
        self._call(request).hang_up()
        return Response(status_code=200)

    async def _events(self, request: Request) -> Response:
        call = self._call(request)
        if call.has_reader:
            raise Refused(409, "the events of this call are read already")
        return StreamingResponse(call.events(), media_type="text/event-stream")

    def _call(self, request: Request) -> Call:
        call = self._calls.get(request.path_params["id"])
        if call is None or call.gone:
            raise Refused(404, "no such call")
        return call

    async def _open(
        self,
        request: Request,
        dialect: Callable[[StreamRequest], Dialect],
        first: str | None = None,
        last: str | None = None,
    ) -> Call:
        try:  # in a thread: the first import takes longer than a frame of the streams
            rtc = await asyncio.to_thread(importlib.import_module, "aiortc")
        except ImportError as error:
            raise Refused(501, "this server has no WebRTC: install slipstream-stt[webrtc]") from error
        await self._turn.acquire()
        asyncio.get_running_loop().call_later(OFFER_SECONDS, self._turn.release)
        if sum(not call.gone for call in self._calls.values()) >= MOST_CALLS:
            offered = next((call for call in self._calls.values() if not call.begun and not call.gone), None)
            if offered is None:
                raise Refused(503, f"{MOST_CALLS} calls are open")
            offered.abort()
        id = request.scope["id"]
        # The default configuration asks a public STUN server.
        peer = rtc.RTCPeerConnection(rtc.RTCConfiguration(iceServers=[]))

        def over() -> None:
            self._calls.pop(id, None)

        call = Call(peer, first, last, over)
        call.stream = self._open_stream(request, dialect, call)
        self._calls[id] = call
        return call

    async def _answer(self, request: Request, call: Call, offer: str, path: str) -> Response:
        try:
            sdp = await call.answer(self._candidates.limit(offer))
        except Refused:
            call.abort()
            raise
        headers = {"location": f"{path}/{request.scope['id']}"}
        return PlainTextResponse(sdp, 201, headers, media_type="application/sdp")


async def _offer(request: Request) -> tuple[str, str]:
    """Return the SDP offer of a request, and the session's configuration as JSON, if any."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise Refused(413, f"a request with an offer has at most {BODY_BYTES} bytes")
    kind, session = request.headers.get("content-type", ""), ""
    if kind.startswith("multipart/form-data"):
        form = MultipartForm(kind)
        form.receive(body)
        form.end()
        parts = dict(form.fields)
        if "sdp" not in parts:
            raise Refused(400, "the form has no field sdp, the SDP offer")
        sdp, session = parts["sdp"], parts.get("session", "")
    elif kind.startswith("application/sdp"):
        try:
            sdp = body.decode()
        except UnicodeDecodeError as error:
            raise Refused(400, "the SDP offer is not text in UTF-8") from error
    else:
        raise Refused(415, "an offer has the content type application/sdp, or multipart/form-data with the part sdp")
    if (reason := refusal(sdp)) is not None:
        raise Refused(400, reason)
    return sdp, session
