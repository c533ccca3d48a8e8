"""Deepgram's pre-recorded `POST /v1/listen`: the body is the file, the response its transcript per channel."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from starlette.responses import JSONResponse, Response

from slipstream.connections.access import Refused
from slipstream.dialects.deepgram.parameters import Parameters, request_id
from slipstream.dialects.deepgram.results import alternative, alternatives, model_info, model_uuid
from slipstream.dialects.deepgram.v1 import PATH as V1_PATH
from slipstream.dialects.deepgram.v1 import parse_text_options
from slipstream.dialects.models import StreamRequest, UnknownModel
from slipstream.dialects.protocol import ProtocolError
from slipstream.server.uploads.protocol import OPTIONS, Job, UploadDialect, UploadError
from slipstream.transcript import Transcript

PATH = V1_PATH
_CODES = {
    400: "INVALID_REQUEST",
    401: "INVALID_AUTH",
    403: "FORBIDDEN",
    413: "PAYLOAD_TOO_LARGE",
    429: "TOO_MANY_REQUESTS",
    503: "SERVICE_UNAVAILABLE",
}


class DeepgramUpload(UploadDialect):
    """A file in any format, or raw samples if `encoding` and `sample_rate` are given."""

    name = "deepgram"

    def __init__(self, request: StreamRequest) -> None:
        super().__init__(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
            raise UploadError(400, "this server downloads no files: send the audio as the body, not its url")
        parameters = Parameters(request)
        try:
            self._model = request.models.name(request.get("model"))
            self._punctuate = parse_text_options(parameters)
            self._utterances = parameters.flag("utterances")
            channels = "separate" if parameters.flag("multichannel") else "mix"
            hints = parameters.hints()
            self._alternatives = hints.alternatives
            options = replace(OPTIONS, hints=hints.for_session())
            self.job = Job(self._model, options, parameters.raw(), channels)  # type: ignore[arg-type]
        except (ProtocolError, UnknownModel) as error:
            raise UploadError(400, str(error)) from error
        self._id = request_id(request.id)
        self._created = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._digest = hashlib.sha256()

    def receive(self, data: bytes) -> bytes:
        """Return the bytes: the whole body is the file."""
        self._digest.update(data)
        return data

    def respond(
        self, transcripts: Sequence[Transcript], warnings: Sequence[str], incomplete: UploadError | None
    ) -> Response:
        """Return the transcripts; an incomplete one is an error, which clients retry."""
        if incomplete:
            raise incomplete
        results: dict[str, Any] = {
            "channels": [
                {"alternatives": alternatives(each.words, self._punctuate, self._alternatives), **_detected(each)}
                for each in transcripts
            ]
        }
        if self._utterances:
            results["utterances"] = self._turns(transcripts)
        metadata = {
            "transaction_key": "deprecated",
            "request_id": self._id,
            "sha256": self._digest.hexdigest(),
            "created": self._created,
            "duration": round(max(each.duration for each in transcripts), 3),
            "channels": len(transcripts),
            "models": [model_uuid(self._model)],
            "model_info": {model_uuid(self._model): model_info(self._model)},
            **({"warnings": [{"type": "audio", "message": warning} for warning in warnings]} if warnings else {}),
        }
        return JSONResponse({"metadata": metadata, "results": results}, headers={"dg-request-id": self._id})

    @staticmethod
    def refuse(error: Refused) -> Response:
        """Return Deepgram's error object. What cannot be decoded is an invalid request there."""
        status = 400 if error.status == 422 else error.status
        code = _CODES.get(status, "INVALID_REQUEST" if status < 500 else "INTERNAL_SERVER_ERROR")
        described = {"err_code": code, "err_msg": error.reason}
        return JSONResponse(described, status, error.headers)

    def _turns(self, transcripts: Sequence[Transcript]) -> list[dict[str, Any]]:
        """Return the turns of all channels, in order of time."""
        turns = []
        for channel, transcript in enumerate(transcripts):
            for number, segment in enumerate(transcript.segments):
                turns.append(
                    {
                        "start": round(segment.start, 3),
                        "end": round(segment.end, 3),
                        "channel": channel,
                        **alternative(segment.words, self._punctuate),
                        "id": str(uuid.uuid5(uuid.UUID(self._id), f"{channel} {number}")),
                    }
                )
        return sorted(turns, key=lambda turn: (turn["start"], turn["channel"]))


def _detected(transcript: Transcript) -> dict[str, Any]:
    """Return the language of most words, and its mean probability over all words."""
    if not transcript.languages:
        return {}
    language = transcript.languages[0]
    sure = [word.language_confidence or 0.0 for word in transcript.words if word.language == language]
    return {"detected_language": language, "language_confidence": round(sum(sure) / len(transcript.words), 4)}
