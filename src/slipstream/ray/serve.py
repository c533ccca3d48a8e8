"""The server as a deployment of Ray Serve: replicas with an engine each, behind one address.

    from ray import serve
    import slipstream.ray

    serve.run(slipstream.ray.app("tiny", slots=8, replicas=(1, 4)))

Every route of the server works through Serve's proxy. `POST /v1/sessions` returns the address of a replica, so that the
frames of a stream do not pass the proxy: `ResumableStream(url, sessions=True)` uses it.
"""

from __future__ import annotations

import asyncio
import gc
import math
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, request_response
from starlette.types import Receive, Scope, Send

import ray
from ray import serve
from slipstream.connections.access import Access, Refused
from slipstream.connections.asgi import AsgiWebSocket
from slipstream.connections.keys import KeyRing
from slipstream.connections.limits import Limits
from slipstream.errors import ConfigError
from slipstream.server.http.app import Service
from slipstream.server.http.requests import Guarded, Requests, failure_handlers
from slipstream.server.metrics import Metrics
from slipstream.server.run import SWITCH_SECONDS, Server, listen
from slipstream.server.served import ServedModel, open_models

SESSIONS = "/v1/sessions"
STREAMS = "streams"
"""The metric of a replica by which the number of replicas follows."""
LOAD = 0.7
"""Share of a replica's slots that autoscaling aims for."""
SPARE_REQUESTS = 16
"""Requests beyond one per slot that a replica takes: for information, and `POST /v1/sessions`."""
ASKED_REPLICAS = 8
"""Number of replicas to try for a free slot before a session is refused."""


@dataclass(frozen=True)
class Options:
    """Options of each replica; see `app`."""

    served: ServedModel
    host: str
    keys: Path | None
    origins: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    queue_seconds: float = 10.0
    resume_seconds: float = 10.0
    flush_after_silence: float = 0.0


def app(
    model: str = "tiny",
    *,
    slots: int = 8,
    backend: str = "auto",
    device: str = "auto",
    replicas: int | tuple[int, int] = 1,
    api_keys: str | Path | None = None,
    host: str | None = None,
    allow_origin: tuple[str, ...] = (),
    queue_seconds: float = 10.0,
    resume_seconds: float = 10.0,
    flush_after_silence: float = 0.0,
    limits: Limits | None = None,
    actor_options: Mapping[str, Any] | None = None,
    autoscaling: Mapping[str, Any] | None = None,
    name: str = "slipstream",
) -> serve.Application:
    """Make an application of Ray Serve that transcribes live streams and files.

    A stream keeps one of a replica's slots for its whole life. With a range of replicas, their number follows the open
    streams: 70 % of the slots in use is the aim.

    Args:
        model: `[NAME=]MODEL`, as for `slipstream serve --model`.
        slots: Concurrent streams of a replica.
        backend: `torch`, `onnx`, `mlx` or `auto`.
        device: `cpu`, `cuda`, or `auto`.
        replicas: Their number, or the least and the most of them.
        api_keys: File of accepted keys, on every node. Without it, the replicas only listen on 127.0.0.1.
        host: Address on which replicas listen. Default: 127.0.0.1 without keys, else the node's own address.
        allow_origin: Origins whose pages may connect.
        queue_seconds: How long a stream may wait for a slot.
        resume_seconds: How long a stream whose connection was lost keeps its slot for its client.
        flush_after_silence: As for `slipstream serve`.
        limits: Limits of each replica. A replica that stops gives streams `drain_seconds` to end.
        actor_options: Resources of a replica. Default: a GPU if `device` is `cuda`, else one CPU.
        autoscaling: More fields of `ray.serve.config.AutoscalingConfig`, such as `upscale_delay_s`.
        name: Name of the deployment.

    Returns:
        The application, for `serve.run` or `serve build`.

    Raises:
        ConfigError: A setting is invalid.

    Example:
        >>> serve.run(slipstream.ray.app("kyutai/stt-1b-en_fr", slots=64, device="cuda", replicas=(1, 8)))
    """
    least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
    if not 1 <= least <= most:
        raise ConfigError(f"replicas={replicas}: expected a number of at least 1, or (least, most)")
    if slots < 1:
        raise ConfigError(f"slots={slots}: expected at least 1")
    keys = Path(api_keys) if api_keys is not None else None
    if host is None:
        host = "127.0.0.1" if keys is None else ""
    limits = limits or Limits()
    Access(host or "0.0.0.0", KeyRing.read(keys) if keys else None, allow_origin)  # raises for what is not safe
    options = Options(
        served=ServedModel.parse(model, slots, backend, device, "auto"),
        host=host,
        keys=keys,
        origins=tuple(allow_origin),
        limits=limits,
        queue_seconds=queue_seconds,
        resume_seconds=resume_seconds,
        flush_after_silence=flush_after_silence,
    )
    default = {"num_cpus": 1, "num_gpus": 1 if device.startswith("cuda") else 0}
    settings: dict[str, Any] = {
        "name": name,
        "max_ongoing_requests": slots + SPARE_REQUESTS,
        "ray_actor_options": dict(actor_options or default),
        # First the streams through the proxy, then those of the replica's own address.
        "graceful_shutdown_timeout_s": 2 * limits.drain_seconds + 10,
        "graceful_shutdown_wait_loop_s": 1.0,
    }
    if least == most:
        settings["num_replicas"] = least
    else:
        settings["autoscaling_config"] = AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            target_ongoing_requests=max(1.0, LOAD * slots),
            policy=AutoscalingPolicy(policy_function=replicas_for_streams),
            **(autoscaling or {}),
        )
    deployment = serve.deployment(**settings)(serve.ingress()(Replica))
    bound: serve.Application = deployment.bind(options)
    return bound


def replicas_for_streams(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Return how many replicas the open streams need; Serve applies bounds and delays."""
    streams = sum((context.aggregated_metrics or {}).get(STREAMS, {}).values())
    return math.ceil(streams / context.config.get_target_ongoing_requests()), {}


class Replica:
    """One engine, with the server's routes on Serve's proxy and on its own port."""

    async def __init__(self, options: Options) -> None:  # type: ignore[misc]
        self._options = options
        self._stack = ExitStack()
        metrics = Metrics()
        engines = await asyncio.to_thread(
            open_models, [options.served], self._stack, max_waiting=64, observer=metrics.observe_step
        )
        host = options.host or ray.util.get_node_ip_address()
        keys = KeyRing.read(options.keys) if options.keys else None
        self._service = Service(
            engines=engines,
            access=Access(host, keys, options.origins),
            limits=options.limits,
            metrics=metrics,
            queue_seconds=options.queue_seconds,
            resume_seconds=options.resume_seconds,
            flush_after_silence=options.flush_after_silence,
        )
        listener = self._stack.enter_context(listen(host, 0))
        self._address = _url(*listener.getsockname()[:2])
        sys.setswitchinterval(SWITCH_SECONDS)
        gc.freeze()
        self._server = Server(self._service)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        self._sessions = self._sessions_app()
        self._draining = False
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
                raise ConfigError(f"the server on {self._address} did not start")
            await asyncio.sleep(0.01)

    def __serve_build_asgi_app__(self) -> Any:
        async def asgi(scope: Scope, receive: Receive, send: Send) -> None:  # uvicorn takes no bound method
            await self._asgi(scope, receive, send)

        return asgi

    def check_health(self) -> None:
        """Fail when the model has failed or hangs: Serve then replaces the replica."""
        if trouble := self._service.trouble:
            raise RuntimeError(trouble)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the number of streams and uploads that have a slot or wait for one."""
        engines = self._service.engines.values()
        return {STREAMS: float(sum(engine.active + engine.waiting for engine in engines))}

    def free_address(self) -> str | None:
        """Return the address of this replica, or None without a free slot."""
        engine = self._service.engine
        free = engine.slots - engine.active - engine.waiting > 0
        return self._address if free and not self._draining and not self._service.trouble else None

    async def __del__(self) -> None:
        """Finish the streams, then stop. Serve calls it before it stops the process."""
        self._draining = True
        await self._server.drain()
        self._server.should_exit = True
        await self._serving
        await asyncio.to_thread(self._stack.close)

    async def _asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "websocket":
            await AsgiWebSocket(self._server.accept, self._service.limits, scope, receive, send).run()
        elif scope["path"] == SESSIONS:
            await self._sessions(scope, receive, send)
        else:
            await self._server.app(scope, receive, send)

    def _sessions_app(self) -> Requests:
        endpoint = Guarded(request_response(self._new_session), self._service.access)
        routes = [Route(SESSIONS, endpoint, methods=["POST"])]
        handlers = failure_handlers(self._service.metrics)
        return Requests(Starlette(routes=routes, exception_handlers=handlers), self._service.limits.header_bytes)

    async def _new_session(self, request: Request) -> Response:
        """Return the address of a replica with a free slot: this one, or another that Serve's router selects."""
        address, context = self.free_address(), serve.get_replica_context()
        for _ in range(ASKED_REPLICAS):
            if address is not None:
                return JSONResponse({"url": address}, 201)
            handle = serve.get_deployment_handle(context.deployment, context.app_name)
            address = await handle.free_address.remote()
        raise Refused(503, "all slots are in use", {"retry-after": "1"})


async def _lifespan(receive: Receive, send: Send) -> None:
    """Answer the lifespan of the ASGI application: the replica starts and stops on its own."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
