"""Throw mutated messages at every decoder of the server: `python -m benchmarks.fuzz --each 200000`.

Each input is a valid message, or several, with bytes flipped, cut, doubled or spliced, or plain noise; some are small
and hold hours of audio. Every dialect also gets damaged conversations of its client, with events of the session between
the messages; those of text to speech get damaged messages. A decoder may answer with commands or with `ProtocolError`,
and may decode no more than `MOST_SAMPLES` between two of them, whatever the size of the input; anything else is printed
with the input that caused it, and fails the run.

`--workers N` sends the inputs to a live server with N worker processes instead (0: in one process), each on a
separate connection. The server must log no error, lose no process and free every slot.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from functools import partial
from typing import Any, TypeAlias, get_args
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgpack
import numpy as np
from benchmarks.attacks import CLOSE, Target, frame
from benchmarks.attacks.__main__ import processes, server, until_free
from benchmarks.attacks.dialects import connected
from benchmarks.attacks.dialects import encoded as encoded_messages
from benchmarks.attacks.opus import opus_bomb
from benchmarks.attacks.uploads import encoded
from benchmarks.damage import damaged, mutated
from benchmarks.dialects import CLIENTS
from benchmarks.fuzz_speech import SPEECH, make_speech, run_speech

from slipstream.audio import SAMPLE_RATE, Encoding, RawFormat
from slipstream.dialects import DIALECTS, TCP_DIALECTS
from slipstream.dialects.kyutai import PATH as KYUTAI_PATH
from slipstream.dialects.kyutai import KyutaiDialect
from slipstream.dialects.models import Models, StreamInfo, StreamRequest
from slipstream.dialects.plain import PATH as PLAIN_PATH
from slipstream.dialects.plain import PlainDialect, open_dialect
from slipstream.dialects.protocol import PIECE_SAMPLES, Action, Audio, Close, Dialect, Finish, Message, ProtocolError
from slipstream.dialects.realtime.transcription import TranscriptionDialect
from slipstream.events import (
    Alternative,
    EndOfTurn,
    Event,
    Final,
    Flushed,
    MarkerReached,
    OpenWord,
    PartialWord,
    Ready,
    Step,
    Turn,
    Word,
)
from slipstream.server.uploads.openai import PATH as OPENAI_PATH
from slipstream.server.uploads.openai import OpenAIUpload
from slipstream.server.uploads.protocol import UploadError

FuzzTarget: TypeAlias = tuple[str, Callable[[random.Random], Any], Callable[[Any], int]]
"""A decoder: its name, what makes an input, and what decodes one and returns the most samples between two turns."""
MOST_SAMPLES = PIECE_SAMPLES + 3 * 2880
"""A packet of 120 ms beyond a piece, and what the resampler held back."""
INFO = StreamInfo("fuzz", 0.5, 0.08)
MEDIA = RawFormat("pcm_s16le", 48_000)
"""The audio of a call on WebRTC."""
PATIENCE_SECONDS = 10.0
"""How long a live server may take to answer one input."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("decoders", nargs="*", default=["*"], metavar="NAME", help="or a pattern; all by default")
    parser.add_argument("--each", type=int, default=50_000, help="inputs for each decoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="send the inputs to a server with N worker processes")
    arguments = parser.parse_args()
    targets = [target for target in TARGETS if any(fnmatch(target[0], pattern) for pattern in arguments.decoders)]
    if arguments.workers is not None:
        sys.exit(fuzz_server(targets, arguments.each, arguments.seed, arguments.workers))
    drawn = random.Random(arguments.seed)
    outcomes: Counter[str] = Counter()
    largest: Counter[str] = Counter()
    warnings.simplefilter("error")
    began, failures = time.monotonic(), 0
    for name, make, run in targets * arguments.each:
        case = make(drawn)
        try:
            largest[name] = max(largest[name], run(case))
            outcomes[f"{name} understood"] += 1
        except (ProtocolError, UploadError):
            outcomes[f"{name} refused"] += 1
        except Exception as error:
            failures += 1
            print(f"{name}: {type(error).__name__}: {error}: {case!r:.300}")
    inputs = arguments.each * len(targets)
    print(f"{inputs} inputs in {time.monotonic() - began:.0f} s: {dict(sorted(outcomes.items()))}")
    print(f"the most audio between two turns of the event loop, in seconds: {seconds(largest)}")
    print(f"{failures} other errors")
    sys.exit(failures > 0)


# ------------------------------------------------------------------------------------------------------------ Kyutai's

OPUS = encoded("ogg", "libopus", 0.2, samples=960, rate=48_000)
KYUTAI = [
    msgpack.packb({"type": "Init"}),
    msgpack.packb({"type": "Marker", "id": 1 << 40}),
    msgpack.packb({"type": "Audio", "pcm": [0.5, -0.25] * 10}, use_single_float=True),
    msgpack.packb({"type": "Audio", "pcm": [0.5, 0, 1]}),
    msgpack.packb({"pcm": b"\0\0\0\x3f" * 9, "type": "Audio"}),
    msgpack.packb({"type": "OggOpus", "data": OPUS[:200]}),
    msgpack.packb({"type": "OggOpus", "data": list(OPUS[:120])}),
]


def make_kyutai(drawn: random.Random) -> list[bytes]:
    return [mutated(drawn, drawn.choice(KYUTAI)) for _ in range(drawn.randrange(1, 4))]


def make_opus(drawn: random.Random) -> list[bytes]:
    """A damaged stream in sound messages; some repeat a short packet and hold up to two minutes."""
    stream = OPUS
    if drawn.random() < 0.02:
        packet = bytes([drawn.randrange(256)]) + drawn.randbytes(drawn.randrange(4))
        stream = opus_bomb(packet, drawn.randrange(700, 4096))
    stream = mutated(drawn, stream)
    size = drawn.randrange(1, len(stream) + 2)
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    return [msgpack.packb({"type": "OggOpus", "data": piece}) for piece in pieces[:20]]


def run_kyutai(case: list[bytes]) -> int:
    return expanded(KyutaiDialect(), case)


def expanded(dialect: Dialect, messages: Iterable[Message]) -> int:
    """Decode messages; the most samples in one command. Raises when that is too much, or a message without end."""
    most, commands, size = 0, 0, 0
    for message in messages:
        size += len(message) + 1  # what a page holds comes with its last byte
        for command in dialect.receive(message):
            commands += 1
            assert commands <= size, f"more commands than bytes: {commands} of {size}"
            if isinstance(command, Audio):
                most = max(most, len(command.pcm_S))
    assert most <= MOST_SAMPLES, f"{most} samples in one call"
    return most


def seconds(samples: Counter[str]) -> dict[str, float]:
    return {name: round(count / SAMPLE_RATE, 3) for name, count in samples.items()}


# -------------------------------------------------------------------------------------------------------- a live server


def fuzz_server(targets: list[FuzzTarget], each: int, seed: int, workers: int) -> int:
    """Send inputs to a server. Returns how many defects it has shown."""
    drawn, began = random.Random(seed), time.monotonic()
    options = argparse.Namespace(slots=16, step_ms=0.0, slot_ms=0.0, model=None, workers=workers)
    with server(options) as (process, ports, log):
        before = processes(process.pid)
        outcomes: Counter[str] = Counter()
        for number, (name, make, _) in enumerate([target for target in targets if target[0] not in NOT_LIVE] * each):
            outcomes[send(name, make(drawn), Target(ports[""], time.monotonic() + PATIENCE_SECONDS, ports))] += 1
            if process.poll() is not None:
                print(log.read_text(), f"the server ended with code {process.returncode} at input {number}")
                return 1
        leaked, lost = asyncio.run(until_free(ports[""])), set(before) - set(processes(process.pid))
        process.terminate()
        code = process.wait(60)
        errors = log.read_text().splitlines()
    print(f"{outcomes.total()} inputs in {time.monotonic() - began:.0f} s: {dict(sorted(outcomes.items()))}")
    print(*errors[:10], sep="\n", file=sys.stderr)
    print(f"{len(errors)} errors logged, {leaked} slots leaked, {len(lost)} processes lost, exit code {code}")
    return len(errors) + leaked + len(lost) + abs(code) + outcomes["unanswered"]


def send(name: str, case: Any, target: Target) -> str:
    """Send one input on a new connection, and read until the server closes it. Returns how that ended."""
    try:
        if name == "forms":
            kind, pieces = case
            target.request("POST", OPENAI_PATH, f"Content-Type: {kind}", body=b"".join(pieces))
            return "answered"
        client = name.removesuffix(" client")
        if client in CLIENTS:
            messages = [message for message in case if isinstance(message, (bytes, str))]
            sent, connection = encoded_messages(client, messages), connected(client, target)
        else:
            path, messages = of_websocket(name, case)
            sent, connection = encoded_messages("plain", messages), target.websocket(path)
        with connection:
            connection.sendall(sent)
            if client in CLIENTS and CLIENTS[client].tcp:
                connection.shutdown(socket.SHUT_WR)
            else:
                connection.sendall(frame(b"\x03\xe8", CLOSE))
            while connection.recv(1 << 16):
                pass
    except TimeoutError:
        print(f"unanswered: {name}: {case!r:.300}")
        return "unanswered"
    except OSError:
        return "reset"
    return "closed"


def of_websocket(name: str, case: Any) -> tuple[str, list[Message]]:
    """The address and the messages of an input that is no conversation of a client."""
    if name == "addresses":
        return f"{PLAIN_PATH}?{urlencode(case)}", []
    if name == "PCM and JSON":
        format, messages = case
        fields = {"encoding": format.encoding, "sample_rate": format.sample_rate, "channels": format.channels}
        return f"{PLAIN_PATH}?{urlencode(fields)}", messages
    return KYUTAI_PATH, case


# --------------------------------------------------------------------------------------------------------------- plain

CONTROLS = [
    json.dumps({"type": "flush", "id": 7}).encode(),
    json.dumps({"type": "restart"}).encode(),
    json.dumps({"type": "close", "nested": [[{}], 1e9, None, "\u00e9\ud83d\ude00"]}).encode(),
]
FORMATS = [
    RawFormat(encoding, rate, channels)
    for encoding in get_args(Encoding)
    for rate in (24_000, 8_000, 4_000)
    for channels in (1, 2)
]


def make_plain(drawn: random.Random) -> tuple[RawFormat, list[bytes | str]]:
    messages: list[bytes | str] = []
    for _ in range(drawn.randrange(1, 5)):
        if drawn.random() < 0.5:
            messages.append(drawn.randbytes(drawn.choice((drawn.randrange(64), drawn.randrange(64), 4096))))
        else:
            messages.append(mutated(drawn, drawn.choice(CONTROLS)).decode("utf-8", "replace"))
    return drawn.choice(FORMATS), messages


def run_plain(case: tuple[RawFormat, list[bytes | str]]) -> int:
    format, messages = case
    return expanded(PlainDialect(format, INFO), messages)


def make_query(drawn: random.Random) -> list[tuple[str, str]]:
    values = (
        "pcm_s16le",
        "mulaw",
        "8000",
        "24000",
        "1",
        "2",
        "",
        "-1",
        "1e3",
        "٣",
        "999999",
        "0x10",
        "Poirot:2",
        "nan",
    )
    names = ("encoding", "sample_rate", "channels", "other", "keyword", "prompt", "language", "delay", "alternatives")
    return [
        (drawn.choice(names), mutated(drawn, drawn.choice(values).encode()).decode("utf-8", "replace"))
        for _ in range(drawn.randrange(4))
    ]


def run_query(query: list[tuple[str, str]]) -> int:
    open_dialect(StreamRequest(Models({INFO.model: INFO}), query))
    return 0


# ---------------------------------------------------------------------------------------------------------------- forms

FORM_TYPE = "multipart/form-data; boundary=frontier"
FORM_FIELDS = [
    ("model", "fuzz"),
    ("response_format", "verbose_json"),
    ("include[]", ""),
    ("temperature", "0.5"),
    ("language", "en"),
    ("chunking_strategy", '{"type": "server_vad", "threshold": 0.5}'),
    ("stream", "false"),
]


def make_form(drawn: random.Random) -> tuple[str, list[bytes]]:
    """A content type, and a form of some fields and a file, damaged and cut."""
    fields = drawn.sample([*FORM_FIELDS, ('file"; filename="a.wav', "RIFF")], drawn.randrange(len(FORM_FIELDS) + 2))
    parts = [
        f'--frontier\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
        + (mutated(drawn, value.encode()) if drawn.random() < 0.3 else value.encode())
        for name, value in fields
    ]
    body = b"\r\n".join([*parts, b"--frontier--\r\n"])
    body = mutated(drawn, body) if drawn.random() < 0.5 else body
    kind = mutated(drawn, FORM_TYPE.encode()).decode("latin-1") if drawn.random() < 0.1 else FORM_TYPE
    borders = sorted(drawn.randrange(len(body) + 1) for _ in range(drawn.randrange(4)))
    return kind, [body[start:end] for start, end in zip([0, *borders], [*borders, len(body)], strict=True)]


def run_form(case: tuple[str, list[bytes]]) -> int:
    kind, pieces = case
    dialect = OpenAIUpload(StreamRequest(Models({"fuzz": INFO}), headers={"content-type": kind}))
    for piece in pieces:
        dialect.receive(piece)
    dialect.end()
    return 0


# ----------------------------------------------------------------------------------------------- every dialect's client


def make_conversation(name: str, drawn: random.Random) -> list[Message | Event]:
    """A conversation of a dialect's client: messages damaged, repeated or missing, and events of the session."""
    client = CLIENTS[name]()
    pcm_S = np.array([drawn.uniform(-1, 1) for _ in range(drawn.randrange(1, 40))], np.float32)
    whole = [*client.begin(), *client.audio(pcm_S), *client.finish()]
    return [
        drawn.choice(EVENTS) if drawn.random() < 0.4 else damaged(drawn, drawn.choice(whole))
        for _ in range(drawn.randrange(1, 8))
    ]


def run_conversation(name: str, case: list[Message | Event]) -> int:
    address = urlsplit(CLIENTS[name].path)
    request = StreamRequest(Models({INFO.model: INFO}), parse_qsl(address.query), CLIENTS[name].headers, "fuzz")
    opened = TCP_DIALECTS[CLIENTS[name].tcp] if CLIENTS[name].tcp else DIALECTS[address.path]
    return converse(opened(request), case)


def make_call(drawn: random.Random) -> list[Message | Event]:
    """A conversation of a client on WebRTC: the messages of its data channel, and pieces of its track."""
    audio = drawn.randbytes(2 * drawn.randrange(2000))
    return [audio if isinstance(item, bytes) else item for item in make_conversation("realtime-ga", drawn)] + [audio]


def run_call(case: list[Message | Event]) -> int:
    return converse(TranscriptionDialect(StreamRequest(Models({INFO.model: INFO})), media=MEDIA), case)


def converse(dialect: Dialect, case: list[Message | Event]) -> int:
    actions: list[Action] = list(dialect.open())
    most = 0
    for item in case:
        if any(isinstance(action, (Close, Finish)) for action in actions):
            break  # the server reads no further
        if isinstance(item, (bytes, str)):
            actions = list(dialect.receive(item))
            assert len(actions) <= len(item) + 8, f"more actions than bytes: {len(actions)}"
            most = max([most, *(len(action.pcm_S) for action in actions if isinstance(action, Audio))])
        else:
            actions = list(dialect.handle(item, 0))
    assert most <= MOST_SAMPLES, f"{most} samples in one action"
    return most


EVENTS: list[Event] = [
    Ready(),
    Step(1, (0.1, 0.2, 0.3, 0.4), 0, 0.3),
    Step(25, (0.9, 0.9, 0.95, 0.99), 960, 0.95),
    Step(26, (), 0),
    PartialWord("a", 0.4),
    OpenWord("and", 0.4, 0.5),
    Word("and", 0.4, 0.6, 0.5),
    Word("Ende", 0.4, 0.6, 0.5, language="de", language_confidence=0.6, alternatives=(Alternative("end", 0.4),)),
    EndOfTurn(2.0),
    Turn(0.4, 0.6),
    Flushed(2.0, 0.01),
    MarkerReached(1),
    Final(2.0, 0.01),
]

TARGETS: list[FuzzTarget] = [
    ("msgpack", make_kyutai, run_kyutai),
    ("Ogg Opus", make_opus, run_kyutai),
    ("PCM and JSON", make_plain, run_plain),
    ("addresses", make_query, run_query),
    ("forms", make_form, run_form),
    *((name, partial(make_speech, name), partial(run_speech, name)) for name in SPEECH),
    *((f"{name} client", partial(make_conversation, name), partial(run_conversation, name)) for name in CLIENTS),
    ("realtime call", make_call, run_call),
]

NOT_LIVE = ("realtime call", *SPEECH)
"""Decoders whose inputs a live server does not get: the track of a call is WebRTC's, and it has no speech model."""

if __name__ == "__main__":
    main()
