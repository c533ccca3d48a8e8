"""Transcribe several files with asyncio: for each, one task sends audio and another reads events.

python examples/asyncio_session.py a.mp3 b.mp3
"""

import asyncio
import sys

import slipstream
from slipstream.audio import decode


async def transcribe(transcriber: slipstream.Transcriber, path: str) -> str:
    words = []
    async with transcriber.async_session(wait=60) as session:

        async def read() -> None:
            async for event in session:
                if isinstance(event, slipstream.Word):
                    words.append(event.text)

        chunks = (piece[0] for piece in decode(path))
        await asyncio.gather(session.feed(chunks), read())
    return f"{path}: {' '.join(words)}"


async def main(*paths: str) -> None:
    with slipstream.load(slots=len(paths), beam=1) as transcriber:
        for line in asyncio.as_completed([transcribe(transcriber, path) for path in paths]):
            print(await line)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
