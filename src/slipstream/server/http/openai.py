"""OpenAI's routes for models, the one for translations, which the models cannot do, and what routes with JSON share."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, request_response

from slipstream.connections.access import Access
from slipstream.dialects.models import Models, StreamInfo
from slipstream.dialects.texts import parse_json
from slipstream.server.http.requests import Guarded
from slipstream.server.uploads.openai import OpenAIUpload
from slipstream.server.uploads.protocol import UploadError


def openai_routes(models: Models[StreamInfo], access: Access) -> list[BaseRoute]:
    """Return the routes. A model counts as created when the server started."""
    created = int(time.time())

    def described(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": created, "owned_by": "slipstream"}

    async def all_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described(name) for name in models]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["model"]
        if name not in models:
            raise UploadError(404, f"unknown model {name!r:.80}: this server has {', '.join(models)}", "model")
        return JSONResponse(described(name))

    async def translations(request: Request) -> Response:
        raise UploadError(400, "the models of this server do not translate: transcribe at /v1/audio/transcriptions")

    routes: list[BaseRoute] = []
    for path, method, handler in (
        ("/v1/models", "GET", all_models),
        ("/v1/models/{model:path}", "GET", one_model),
        ("/v1/audio/translations", "POST", translations),
    ):
        endpoint = Guarded(request_response(handler), access, OpenAIUpload.refuse)
        routes.append(Route(path, endpoint, methods=[method]))
    return routes


async def read_object(request: Request, most_bytes: int) -> dict[str, Any]:
    """Return the JSON object that is the body of a request. Raises `UploadError`."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > most_bytes:
                raise UploadError(413, f"the body has more than {most_bytes} bytes")
    except ClientDisconnect as error:
        raise UploadError(400, "the body is not complete") from error
    try:
        value = parse_json(bytes(body))
    except (ValueError, RecursionError) as error:
        raise UploadError(400, f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UploadError(400, f"the body is not a JSON object, but {type(value).__name__}")
    return value
