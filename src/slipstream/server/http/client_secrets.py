"""OpenAI's `POST /v1/realtime/client_secrets`: keys for pages, which expire and bring the session's configuration."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, request_response

from slipstream.connections.access import Access
from slipstream.dialects.models import Models, StreamInfo
from slipstream.dialects.realtime import PATH as REALTIME_PATH
from slipstream.dialects.realtime.messages import InvalidMessage
from slipstream.dialects.realtime.settings import configure
from slipstream.dialects.texts import to_json
from slipstream.errors import ConfigError
from slipstream.schema import Section, parse
from slipstream.server.http.openai import read_object
from slipstream.server.http.requests import Guarded, scope_client
from slipstream.server.uploads.openai import OpenAIUpload
from slipstream.server.uploads.protocol import UploadError

PATH = f"{REALTIME_PATH}/client_secrets"
SESSION_BYTES = 4096
"""Of a session's configuration: a client secret has to fit into one header, which many proxies limit to 8 KiB."""
MAX_BODY = 16 << 10


class _ExpiresAfter(Section):
    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, Field(ge=10, le=7200)] = 600


class _Body(Section):
    expires_after: _ExpiresAfter = _ExpiresAfter()
    session: dict[str, Any] = Field(default_factory=dict)


def secret_route(models: Models[StreamInfo], access: Access) -> Route:
    """Return the route. Only a key opens it, not another client secret."""

    async def create(request: Request) -> Response:
        try:
            asked = parse(_Body, await read_object(request, MAX_BODY), "the request")
            configuration, info = configure(asked.session, models)
        except ConfigError as error:
            raise UploadError(400, str(error)) from error
        except InvalidMessage as error:
            raise UploadError(400, str(error), error.param) from error
        if (size := len(to_json(asked.session).encode())) > SESSION_BYTES:
            raise UploadError(400, f"session: {size} bytes of JSON, the maximum is {SESSION_BYTES}", "session")
        expires_at = int(time.time()) + asked.expires_after.seconds
        value = access.client_secret(scope_client(request.scope), expires_at, asked.session)
        shown = configuration.shown(request.scope["id"], info)
        return JSONResponse(
            {"value": value, "expires_at": expires_at, "session": shown}, headers={"cache-control": "no-store"}
        )

    return Route(PATH, Guarded(request_response(create), access, OpenAIUpload.refuse), methods=["POST"])
