"""Send a file to a server in real time, and print words as they arrive. Needs the extra `client`.

slipstream serve
python examples/websocket_client.py talk.mp3 http://127.0.0.1:8080
"""

import sys
import threading
import time

import slipstream
from slipstream.audio import load
from slipstream.client import Stream, open_stream

RATE = 16_000


def send(stream: Stream, path: str, speed: float) -> None:
    samples = load(path, RATE)
    for start in range(0, len(samples), RATE // 10):
        stream.send(samples[start : start + RATE // 10])
        time.sleep(0.1 / speed)
    stream.finish()


def main(path: str, url: str = "http://127.0.0.1:8080", speed: float = 1.0) -> None:
    with open_stream(url, sample_rate=RATE) as stream:
        threading.Thread(target=send, args=(stream, path, speed)).start()
        for event in stream:
            if isinstance(event, slipstream.Word):
                print(f"{event.start:7.2f}  {event.text}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
