"""OpenAI's `POST /v1/audio/transcriptions`: a form with a file, answered in five formats or with events."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from slipstream.connections.access import Refused
from slipstream.dialects.models import StreamRequest
from slipstream.events import Event, Word
from slipstream.server.uploads.multipart import FILE, MultipartForm
from slipstream.server.uploads.openai_request import TranscriptionRequest, parse_request
from slipstream.server.uploads.protocol import Job, UploadDialect, UploadError
from slipstream.transcript import Segment, Transcript

PATH = "/v1/audio/transcriptions"
UNKNOWN_LANGUAGE = "und"
"""The code of ISO 639-2 for a language that is not determined."""
_LEAST_CONFIDENCE = 1e-10
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


class OpenAIUpload(UploadDialect):
    """A form whose file is transcribed while it arrives, if `stream=true` precedes it."""

    name = "openai"

    def __init__(self, request: StreamRequest) -> None:
        super().__init__(request)
        self._form = MultipartForm(request.headers.get("content-type", ""))
        self._asked: TranscriptionRequest | None = None
        self._spoken = False

    def receive(self, data: bytes) -> bytes:
        """Return the file's part of the body; with its first bytes the job of a stream is known."""
        file = self._form.receive(data)
        if self._form.has_file and self.job is None:
            asked = parse_request(self._form.fields, self.request.models)
            if asked.stream:
                self._choose(asked)
        return file

    def end(self) -> Job:
        """Check the form. Fields after the file may not change what is already being transcribed."""
        self._form.end()
        if not self._form.has_file:
            raise UploadError(400, "the form has no file", FILE)
        asked = parse_request(self._form.fields, self.request.models)
        if self._asked is not None and asked.differs(self._asked):
            raise UploadError(400, "fields that follow the file change the request: send the file last", FILE)
        return self._choose(asked)

    def handle(self, event: Event, channel: int) -> Iterable[bytes]:
        """Yield a delta for each word."""
        if isinstance(event, Word):
            delta: dict[str, Any] = {"type": "transcript.text.delta", "delta": f" {event.text}"}
            if not self._spoken:
                self._spoken, delta["delta"] = True, event.text
            if self._asked is not None and self._asked.logprobs:
                delta["logprobs"] = [_logprob(replace(event, text=delta["delta"]))]
            yield bytes(JSONResponse(delta).body)

    def respond(
        self, transcripts: Sequence[Transcript], warnings: Sequence[str], incomplete: UploadError | None
    ) -> Response:
        """Return the transcript in the format of the request; an incomplete one is an error, which clients retry."""
        if incomplete:
            raise incomplete
        (transcript,), asked = transcripts, self._asked
        assert asked is not None
        warned = {"warnings": list(warnings)} if warnings else {}
        if asked.stream:
            return JSONResponse(
                {"type": "transcript.text.done", "text": transcript.text}
                | _logprobs(transcript, asked)
                | _languages(transcript)
                | warned
            )
        usage = {"usage": {"type": "duration", "seconds": round(transcript.duration, 3)}}
        if asked.format == "json":
            body = {"text": transcript.text} | _logprobs(transcript, asked)
            return JSONResponse(body | _languages(transcript) | usage | warned)
        if asked.format == "verbose_json":
            return JSONResponse(_verbose(transcript, asked) | usage | warned)
        if asked.format == "vtt":
            return Response(transcript.to_vtt(), media_type="text/vtt")
        return PlainTextResponse(transcript.to_srt() if asked.format == "srt" else f"{transcript.text}\n")

    @staticmethod
    def refuse(error: Refused) -> Response:
        """Return OpenAI's error object. What cannot be decoded is an invalid request there."""
        status = 400 if error.status == 422 else error.status
        kind = "server_error" if status >= 500 else "requests" if status == 429 else "invalid_request_error"
        field = error.field if isinstance(error, UploadError) else None
        if error.status == 422:
            field = FILE
        described = {"message": error.reason, "type": kind, "param": field, "code": _CODES.get(status)}
        return JSONResponse({"error": described}, status, error.headers)

    def _choose(self, asked: TranscriptionRequest) -> Job:
        self._asked, self.job = asked, self.job or Job(asked.model, asked.options(), live=asked.stream)
        return self.job


def _verbose(transcript: Transcript, asked: TranscriptionRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": (*transcript.languages, *asked.hints.languages, UNKNOWN_LANGUAGE)[0],
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
    }
    if asked.words:
        body["words"] = [{"word": word.text, **_times(word)} for word in transcript.words]
    if asked.segments:
        body["segments"] = [_segment(number, each, asked) for number, each in enumerate(transcript.segments)]
    return body


def _segment(number: int, segment: Segment, asked: TranscriptionRequest) -> dict[str, Any]:
    """Return a turn as a segment of Whisper. Its tokens would be those of Whisper, so it has none."""
    text = segment.text.encode()
    logprobs = [_log(word) for word in segment.words]
    return {
        "id": number,
        "seek": round(segment.start * 100),  # in frames of 10 ms
        **_times(segment),
        "text": segment.text,
        "tokens": [],
        "temperature": asked.temperature,
        "avg_logprob": round(sum(logprobs) / len(logprobs), 4),
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 4),
        "no_speech_prob": 0.0,
    }


def _languages(transcript: Transcript) -> dict[str, Any]:
    return {"languages": [{"code": code} for code in transcript.languages]} if transcript.languages else {}


def _times(span: Word | Segment) -> dict[str, float]:
    return {"start": round(span.start, 3), "end": round(span.end, 3)}


def _logprobs(transcript: Transcript, asked: TranscriptionRequest) -> dict[str, Any]:
    """Return one entry per word, with the space before it, so that they add up to the text."""
    if not asked.logprobs:
        return {}
    spaced = [
        replace(word, text=f" {word.text}" if number else word.text) for number, word in enumerate(transcript.words)
    ]
    return {"logprobs": [_logprob(word) for word in spaced]}


def _logprob(word: Word) -> dict[str, Any]:
    return {"token": word.text, "bytes": list(word.text.encode()), "logprob": round(_log(word), 4)}


def _log(word: Word) -> float:
    return math.log(max(word.confidence, _LEAST_CONFIDENCE))
