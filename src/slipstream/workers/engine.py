"""The process of one engine: it runs a model on a device for the sessions of all workers."""

from __future__ import annotations

import base64
import json
import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from slipstream.engine.remote.host import EngineHost
from slipstream.engine.remote.memory import Shape
from slipstream.errors import SlipstreamError
from slipstream.server.metrics import Metrics
from slipstream.server.run import log_to_stderr
from slipstream.server.served import OpenedModel
from slipstream.workers.link import LINE_BYTES, encode
from slipstream.workers.page import snapshot

OpenModel: TypeAlias = Callable[[], OpenedModel]


@dataclass(frozen=True, slots=True)
class EngineJob:
    """The job of an engine's process.

    Args:
        open_model: Loads the model. It can be pickled.
        memory: File descriptor of the shared memory.
        max_waiting: Sessions that may wait for a slot.
        number: Of the engine, for the log.
        log_level: Least level of what is logged.
    """

    open_model: OpenModel
    memory: int
    max_waiting: int
    number: int
    log_level: str

    def run(self, end: socket.socket) -> None:
        """Load the model, and run it until the parent stops it or is gone."""
        log_to_stderr(self.log_level, {"process": f"engine-{self.number}"})
        metrics = Metrics()
        try:
            opened = self.open_model()
        except SlipstreamError as error:
            end.sendall(encode({"failed": str(error), "kind": type(error).__name__}))
            sys.exit(1)
        shape = Shape(opened.runner.slots, opened.runner.frame_samples)
        host = EngineHost(opened.runner, self.memory, max_waiting=self.max_waiting, observer=metrics.observe_step)
        ready = {
            "ready": opened.name,
            "slots": shape.slots,
            "frame_samples": shape.frame_samples,
            "format": base64.b64encode(pickle.dumps(opened.format)).decode(),
        }
        end.sendall(encode(ready))
        threading.Thread(target=_obey, args=(end, host, metrics), daemon=True).start()
        try:
            host.run()
        except Exception as error:
            end.sendall(encode({"failed": f"{type(error).__name__}: {error}", "kind": "EngineError"}))
            raise


def _obey(end: socket.socket, host: EngineHost, metrics: Metrics) -> None:
    """Run the commands of the parent: serve another worker, report metrics, or stop."""
    unread = b""
    descriptors: list[int] = []
    while True:
        data, passed, _, _ = socket.recv_fds(end, LINE_BYTES, 64)
        if not data:
            os._exit(1)
        descriptors += passed
        *lines, unread = (unread + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "attach" in message:
                host.attach(socket.socket(fileno=descriptors.pop(0)))
            elif "metrics" in message:
                end.sendall(encode({"metrics": message["metrics"], "families": snapshot(metrics.registry)}))
            elif "stop" in message:
                host.stop()
