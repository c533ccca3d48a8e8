"""Uploads of Kyutai's server: the body is the file, the response a JSON list of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from slipstream.connections.access import Refused
from slipstream.dialects.models import StreamRequest
from slipstream.server.uploads.protocol import Job, UploadDialect, UploadError
from slipstream.transcript import Transcript

INCOMPLETE_HEADER = "transcript-incomplete"
"""Response header: why a transcript ends before its audio, and after how many seconds."""


class KyutaiUpload(UploadDialect):
    """A file for the default model, answered with `Word` and `EndWord` messages."""

    name = "kyutai"

    def __init__(self, request: StreamRequest) -> None:
        super().__init__(request)
        self.job = Job(request.models.default)

    def respond(
        self, transcripts: Sequence[Transcript], warnings: Sequence[str], incomplete: UploadError | None
    ) -> Response:
        """Return the words, with a header if they are incomplete."""
        (transcript,) = transcripts
        messages: list[dict[str, Any]] = []
        for word in transcript.words:
            messages.append({"type": "Word", "text": word.text, "start_time": word.start})
            messages.append({"type": "EndWord", "stop_time": word.end})
        headers = {INCOMPLETE_HEADER: incomplete.reason} if incomplete else None
        return JSONResponse(messages, headers=headers)

    @staticmethod
    def refuse(error: Refused) -> Response:
        """Return the reason as plain text."""
        return PlainTextResponse(error.reason, error.status, error.headers)
