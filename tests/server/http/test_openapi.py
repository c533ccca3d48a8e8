"""The OpenAPI document against the real routes and their responses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from tests.fakes import ScriptRunner, speech
from tests.server.harness import get, serving
from tests.server.http.test_uploads import wav
from tests.server.uploads.forms import CONTENT_TYPE, form

from slipstream.connections.keys import KeyRing
from slipstream.server.http import app
from slipstream.server.http.app import create_app
from slipstream.server.streams.registry import StreamRegistry

yaml = pytest.importorskip("yaml")
METHODS = {"get", "post", "delete"}
FOLDER = Path(app.__file__).parents[1] / "api"
API: dict[str, Any] = yaml.safe_load((FOLDER / "openapi.yaml").read_text(encoding="utf-8"))


def test_it_names_all_routes_and_no_others() -> None:
    with serving() as running:
        starlette = create_app(running.service, StreamRegistry(running.service.limits)).app
    assert isinstance(starlette, Starlette)
    real = {
        (route.path.replace(":path}", "}"), method)
        for route in starlette.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert real == {(path, method.upper()) for path, item in API["paths"].items() for method in item.keys() & METHODS}


def test_both_documents_are_served() -> None:
    with serving(keys=KeyRing.of(["right"])) as running:
        for name in ("asyncapi.yaml", "openapi.yaml"):
            status, body, headers = get(f"{running.http}/{name}")
            assert (status, headers["content-type"]) == (200, "application/yaml")
            assert body == (FOLDER / name).read_bytes()


@pytest.mark.parametrize("path", list(API["paths"]))
def test_responses_have_a_described_status(path: str) -> None:
    """Each route with and without a key, of another page, and for an upload that is no audio."""
    item, kind = API["paths"][path], "application/octet-stream"
    bodies: list[bytes | None] = [None] if "get" in item else []
    if "post" in item:
        bodies += [b"noise", wav(speech(seed=1, words=2))]
    if path.startswith("/v1/audio/"):
        bodies, kind = [form([], body) for body in bodies], CONTENT_TYPE
    address = path.replace("{model}", "script")
    with serving(ScriptRunner(slots=1), keys=KeyRing.of(["right"])) as running:
        for body in bodies:
            described = item["get" if body is None else "post"]
            needs_key = described.get("security") != []
            seen = set()
            for headers in (
                {},
                {"authorization": "Bearer right"},
                {"kyutai_api_key": "right", "origin": "http://e.org"},
            ):
                status, content, received = get(f"{running.http}{address}", body, content_type=kind, **headers)
                assert str(status) in described["responses"]
                if "OpenAIError" in str(described["responses"][str(status)]):
                    assert matches(json.loads(content), API["components"]["responses"]["OpenAIError"])
                assert len(received["x-request-id"]) == 16
                seen.add(status)
                if status == 200 and "application/json" in str(described["responses"]["200"]):
                    assert matches(json.loads(content), described["responses"]["200"])
            assert (401 in seen) == needs_key


def matches(value: Any, response: dict[str, Any]) -> bool:
    """Whether a JSON value has the required keys of the described schema."""
    schema = response["content"]["application/json"]["schema"]
    if reference := schema.get("$ref"):
        schema = API["components"]["schemas"][reference.rpartition("/")[2]]
    if "oneOf" in schema:
        return any(set(value) == set(kind["required"]) for kind in schema["oneOf"])
    if schema["type"] == "array":
        kinds = schema["items"].get("oneOf", [schema["items"]])
        return all(any(set(item) == set(kind["required"]) for kind in kinds) for item in value)
    return set(value) == set(schema["required"])
