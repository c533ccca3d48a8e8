"""A stand-in for a language model: chat completions as server-sent events, in OpenAI's format."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextlib.contextmanager
def language_model(
    answers: Sequence[str], first_seconds: float = 0.0, token_seconds: float = 0.0
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve on loopback until the block ends.

    Args:
        answers: The answer to each request, word by word; the last one is repeated.
        first_seconds: Time to the first word.
        token_seconds: Time to each further word.

    Yields:
        The base URL, and the requests so far.
    """
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = answers[min(len(requests), len(answers) - 1)]
            requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client was interrupted
                for number, word in enumerate(answer.split()):
                    time.sleep(token_seconds if number else first_seconds)
                    self._send({"choices": [{"index": 0, "delta": {"content": f"{word} "}}]})
                self._send({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                self.wfile.write(b"data: [DONE]\n\n")

        def _send(self, event: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()

        def log_message(self, format: str, *arguments: object) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
