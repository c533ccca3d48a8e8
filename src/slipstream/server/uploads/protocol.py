"""The protocol of an upload, for all dialects: the interface of a dialect, and what it may ask of the server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from starlette.responses import Response

from slipstream.audio import Channels, RawFormat
from slipstream.connections.access import Refused
from slipstream.dialects.models import StreamRequest
from slipstream.engine.options import SessionOptions
from slipstream.events import Event
from slipstream.transcript import Transcript

BUFFERED_SECONDS = 4.0
"""How much decoded audio waits for the model: a graceful shutdown transcribes it before the upload ends."""
RETRY_AFTER_SECONDS = 5
WARNING_HEADER = "transcript-warning"
"""Response header: what is wrong with the audio."""
OPTIONS = SessionOptions(partials=False, max_buffered_seconds=BUFFERED_SECONDS)
"""Of an upload's sessions, unless its dialect needs others."""


class UploadError(Refused):
    """An upload is refused or fails. `status`: of the response. `field`: the field of the request at fault, if any."""

    def __init__(
        self, status: int, reason: str, field: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, reason, headers)
        self.field = field


def unavailable(reason: str) -> UploadError:
    """Return the error of a server that cannot serve an upload now, but soon."""
    return UploadError(503, reason, headers={"retry-after": str(RETRY_AFTER_SECONDS)})


@dataclass(frozen=True, slots=True)
class Job:
    """How an upload is transcribed.

    Args:
        model: Name of the model in `Models`.
        options: Of the sessions.
        raw: The format of audio without a header; None for a file that has one.
        channels: `mix` for one session, `separate` for a session per channel.
        live: Whether transcription begins with the file's first bytes, and the response is a stream of server-sent
            events that begins before the body has ended. Otherwise both wait for the whole body.
    """

    model: str
    options: SessionOptions = OPTIONS
    raw: RawFormat | None = None
    channels: Channels = "mix"
    live: bool = False


class UploadDialect(ABC):
    """Turns the body of one request into a file, and its transcript into the response.

    A dialect does no I/O, has no clock and does not see the model. All methods may raise `UploadError`. `receive`,
    `end` and `respond` are called in a thread of the pool, one at a time; `handle` in the event loop, so it must be
    fast. The constructor takes the `StreamRequest`, and raises `UploadError` for what can be refused without the body.
    """

    name: str
    """Its name in the log."""

    job: Job | None = None
    """What to do with the file, once it is known; at the latest after `end`."""

    def __init__(self, request: StreamRequest) -> None:
        self.request = request

    def receive(self, data: bytes) -> bytes:
        """Return what of the next bytes of the body belongs to the file. The default: all."""
        return data

    def end(self) -> Job:
        """Take the end of the body. Returns the job."""
        assert self.job is not None
        return self.job

    def handle(self, event: Event, channel: int) -> Iterable[bytes]:
        """Yield the data of server-sent events for an event of a session. Only called for a live job."""
        return ()

    @abstractmethod
    def respond(
        self, transcripts: Sequence[Transcript], warnings: Sequence[str], incomplete: UploadError | None
    ) -> Response:
        """Return the response. That of a live job is sent as the data of its last event.

        Args:
            transcripts: One per channel.
            warnings: What is wrong with the file, such as that it is cut off. The server adds `WARNING_HEADER`.
            incomplete: Why the transcripts end before the audio; None for complete ones.
        """

    @staticmethod
    @abstractmethod
    def refuse(error: Refused) -> Response:
        """Return the response for an error of this or any earlier stage, such as the access check."""
