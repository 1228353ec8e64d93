"""The client for code without an event loop: each call is handed to an :class:`AsyncClient` in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from medvl.client.aio import AsyncClient, Series
from medvl.client.events import Event
from medvl.client.policies import DEFAULT_RETRY, DEFAULT_TIMEOUTS, RetryPolicy, Timeouts
from medvl.client.prompts import ObjectPrompt
from medvl.client.results import Answer, ServiceDescription, Upload
from medvl.client.stream import EventStream
from medvl.client.upload import OnUpload
from medvl.imaging.cleanup import NO_CLEANUP, Cleanup
from medvl.imaging.volume import Volume

T = TypeVar("T")


class _Loop:
    """An event loop that runs in a daemon thread until it is stopped."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="medvl-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; an interrupt of the caller cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the thread and release the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class SyncStream(Iterator[Event]):
    """Events in order of arrival; see :class:`medvl.client.stream.EventStream`.

    Leaving the iteration early cancels the call on the server: use ``with``, or call :meth:`close`.
    """

    def __init__(self, loop: _Loop, stream: EventStream) -> None:
        self._loop = loop
        self._stream = stream

    def __next__(self) -> Event:
        event = self._loop.run(_next(self._stream))
        if event is None:
            raise StopIteration
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the call if it still runs."""
        self._loop.run(self._stream.aclose())

    def collect(self) -> Answer:
        """Wait for the rest of the answer and return it whole."""
        return self._loop.run(self._stream.collect())


class Client:
    """:class:`AsyncClient` for code without an event loop: the same parameters, results and errors."""

    def __init__(
        self,
        endpoint: str,
        *,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        retry: RetryPolicy = DEFAULT_RETRY,
        compress: bool = False,
    ) -> None:
        self._loop = _Loop()
        try:
            self._client = self._loop.run(_connect(endpoint, timeouts, retry, compress))
        except BaseException:
            self._loop.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the thread."""
        self._loop.run(self._client.close())
        self._loop.stop()

    def put_series(
        self, volume: Volume, *, on_progress: OnUpload | None = None, deadline_s: float | None = None
    ) -> Upload:
        """See :meth:`AsyncClient.put_series`; ``on_progress`` is called in the client's thread."""
        return self._loop.run(self._client.put_series(volume, on_progress=on_progress, deadline_s=deadline_s))

    def report(self, series: Series, *, max_tokens: int = 0, deadline_s: float | None = None) -> SyncStream:
        """See :meth:`AsyncClient.report`."""
        return SyncStream(self._loop, self._client.report(series, max_tokens=max_tokens, deadline_s=deadline_s))

    def ask(self, series: Series, question: str, *, max_tokens: int = 0, deadline_s: float | None = None) -> SyncStream:
        """See :meth:`AsyncClient.ask`."""
        return SyncStream(self._loop, self._client.ask(series, question, max_tokens=max_tokens, deadline_s=deadline_s))

    def segment(
        self,
        series: Series,
        objects: Sequence[ObjectPrompt],
        *,
        previews: bool = False,
        local: bool = False,
        cleanup: Cleanup = NO_CLEANUP,
        deadline_s: float | None = None,
    ) -> SyncStream:
        """See :meth:`AsyncClient.segment`."""
        stream = self._client.segment(
            series, objects, previews=previews, local=local, cleanup=cleanup, deadline_s=deadline_s
        )
        return SyncStream(self._loop, stream)

    def describe(self, *, deadline_s: float | None = None) -> ServiceDescription:
        """See :meth:`AsyncClient.describe`."""
        return self._loop.run(self._client.describe(deadline_s=deadline_s))

    def health(self, *, deadline_s: float | None = None) -> bool:
        """See :meth:`AsyncClient.health`."""
        return self._loop.run(self._client.health(deadline_s=deadline_s))


async def _connect(endpoint: str, timeouts: Timeouts, retry: RetryPolicy, compress: bool) -> AsyncClient:
    return AsyncClient(endpoint, timeouts=timeouts, retry=retry, compress=compress)


async def _next(stream: EventStream) -> Event | None:
    return await anext(stream, None)
