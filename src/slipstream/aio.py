"""Sessions for asyncio: sending and reading are coroutines that do not block the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable

import numpy.typing as npt

from slipstream.engine.live import LiveSession
from slipstream.events import Event
from slipstream.hints import Hints

Open = Callable[[Callable[[], None]], LiveSession]
"""Opens a session with the given `wake`."""


class AsyncSession:
    """One stream on an engine, for asyncio: one task sends audio and another one reads events.

    Create it in a running event loop. Iterate over it with `async for` for its events, up to `Final`. Leaving its
    context frees its slot. See `Transcriber.async_session` for an example.
    """

    def __init__(self, open: Open) -> None:
        self._bell = _Bell(asyncio.get_running_loop())
        self._session = open(self._bell.ring)
        self._events: deque[Event] = deque()

    @property
    def clock(self) -> float:
        """Seconds of its audio transcribed so far."""
        return self._session.clock

    @property
    def queue_position(self) -> int:
        """Place in the queue for a slot, from 1; 0 once it has one."""
        return self._session.queue_position

    async def send(self, samples: npt.ArrayLike) -> None:
        """Send audio, and wait while there is no room for it.

        Args:
            samples: Mono audio `[S]` at the model's rate: floats within [-1, 1], int8, int16, int32 or uint8.

        Raises:
            SessionClosed: After `finish` or the end.
            AudioError: The samples are invalid; the session ends with it, so that its reader gets the error too.
        """
        audio_S = self._session.convert(samples)
        while True:
            self._bell.rung.clear()
            audio_S = audio_S[self._session.offer(audio_S) :]
            if not len(audio_S):
                return
            await self._bell.rung.wait()

    async def feed(self, chunks: Iterable[npt.ArrayLike] | AsyncIterable[npt.ArrayLike]) -> None:
        """Send all chunks, then `finish`: all that a sending task needs to do.

        An error, also one of `chunks`, ends the session with it, so that the reader gets it instead of waiting.

        Args:
            chunks: Pieces of audio, as for `send`.

        Raises:
            SessionClosed: As for `send`.
            AudioError: As for `send`.
        """
        try:
            if isinstance(chunks, AsyncIterable):
                async for chunk in chunks:
                    await self.send(chunk)
            else:
                for chunk in chunks:
                    await self.send(chunk)
                    await asyncio.sleep(0)  # let the reader run, also while there is room
            self.finish()
        except Exception as error:
            self.fail(error)
            raise
        except BaseException:  # cancelled or interrupted
            self.cancel()
            raise

    def flush(self) -> None:
        """Emit all text of the audio sent so far without waiting for more; `Flushed` follows. The stream continues."""
        self._session.flush()

    def mark(self, id: int) -> None:
        """Emit `MarkerReached` once all text of the audio sent so far is out.

        Args:
            id: Number that the event repeats.
        """
        self._session.mark(id)

    def set_hints(self, hints: Hints) -> None:
        """Change the keywords, from the next frame that is processed. The other hints hold from the start.

        Args:
            hints: Its keywords replace those of the session.
        """
        self._session.set_hints(hints)

    def finish(self) -> None:
        """End the audio: what was sent is transcribed to its end, then `Final` follows."""
        self._session.finish()

    def restart(self) -> None:
        """Reset the session in its slot and drop its buffered audio; `Ready` follows."""
        self._session.restart()

    def cancel(self) -> None:
        """End immediately, drop unprocessed audio and free the slot. Does nothing after the end."""
        self._session.cancel()

    def fail(self, error: BaseException) -> None:
        """End immediately and free the slot, like `cancel`. Does nothing after the end.

        Args:
            error: What the reader gets.
        """
        self._session.fail(error)

    def __aiter__(self) -> AsyncSession:
        return self

    async def __anext__(self) -> Event:
        """Return the next event. Raises the error of a failed session after its last event."""
        while not self._events:
            self._bell.rung.clear()
            ended = self._session.ended  # read before `take`: no event follows the end
            self._events.extend(self._session.take())
            if self._events:
                break
            if ended:
                raise StopAsyncIteration
            await self._bell.rung.wait()
        return self._events.popleft()

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(self, *raised: object) -> None:
        self.cancel()


class _Bell:
    """Sets an `asyncio.Event` from the engine's thread. It references no session, so that an unused one is freed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.rung = asyncio.Event()
        self._loop = loop
        self._scheduled = False

    def ring(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        self._scheduled = False
        self.rung.set()
