"""Sessions for asyncio: sending and reading are coroutines, which leave the event loop free."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable
from types import TracebackType

import numpy.typing as npt

from slipstream.engine.live import LiveSession
from slipstream.events import Event

Open = Callable[[Callable[[], None]], LiveSession]
"""Opens a session with the given `wake`."""


class AsyncSession:
    """One stream on an engine, for a coroutine that sends and another that reads; made in a running event loop.

    Iterate over it with `async for` for its events, up to `Final`. Leaving its context frees its slot in any case.
    See `Transcriber.async_session` for an example.
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
        """How many sessions get a slot before this one, itself counted; 0 once it has one."""
        return self._session.queue_position

    async def send(self, samples: npt.ArrayLike) -> None:
        """Send audio, waiting while there is no room for it.

        Args:
            samples: mono `[S]` at the model's rate: floats within [-1, 1], int8, int16, int32 or uint8.

        Raises:
            SessionClosed: after `finish` or the end.
            AudioError: for what is not audio; the session ends with it, so that its reader gets the error, too.
        """
        audio_S = self._session.convert(samples)
        while True:
            self._bell.rung.clear()
            audio_S = audio_S[self._session.offer(audio_S) :]
            if not len(audio_S):
                return
            await self._bell.rung.wait()

    async def feed(self, chunks: Iterable[npt.ArrayLike] | AsyncIterable[npt.ArrayLike]) -> None:
        """Send all chunks, then `finish`: the whole work of a task that sends while another one reads.

        An error on the way, of `chunks` too, ends the session with it, so that the reader gets it instead of waiting.
        """
        try:
            if isinstance(chunks, AsyncIterable):
                async for chunk in chunks:
                    await self.send(chunk)
            else:
                for chunk in chunks:
                    await self.send(chunk)
                    await asyncio.sleep(0)  # the reader's turn, even while there is room
            self.finish()
        except Exception as error:
            self.fail(error)
            raise
        except BaseException:  # cancelled or interrupted
            self.cancel()
            raise

    def flush(self) -> None:
        """Ask for all text of the audio sent so far at once; `Flushed` tells that it is out. The stream goes on."""
        self._session.flush()

    def mark(self, id: int) -> None:
        """Ask to be told, by `MarkerReached`, when all text of the audio sent so far is out."""
        self._session.mark(id)

    def finish(self) -> None:
        """Say that no more audio comes: what was sent is heard and flushed, then `Final` is told."""
        self._session.finish()

    def restart(self) -> None:
        """Forget everything, audio not yet heard included, and begin afresh in the same slot; `Ready` tells it."""
        self._session.restart()

    def cancel(self) -> None:
        """End at once, transcribed or not, and free the slot. Harmless after the end."""
        self._session.cancel()

    def fail(self, error: BaseException) -> None:
        """End at once and free the slot, like `cancel`; the reader gets `error`. Harmless after the end."""
        self._session.fail(error)

    def __aiter__(self) -> AsyncSession:
        return self

    async def __anext__(self) -> Event:
        """The next event; when the session has failed, its error after the events before it."""
        while not self._events:
            self._bell.rung.clear()
            ended = self._session.ended  # looked at first: no event comes after it
            self._events.extend(self._session.take())
            if self._events:
                break
            if ended:
                raise StopAsyncIteration
            await self._bell.rung.wait()
        return self._events.popleft()

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class _Bell:
    """Rung in the engine's thread, heard in the event loop. It holds no session, so that a forgotten one is freed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.rung = asyncio.Event()
        self._loop = loop
        self._scheduled = False

    def ring(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._hear)

    def _hear(self) -> None:
        self._scheduled = False
        self.rung.set()
