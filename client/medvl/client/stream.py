"""An answer while it arrives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Self

from medvl.client.events import Done, Event, Mask, SlicePreview
from medvl.client.results import Answer
from medvl.contracts.errors import InternalError


class EventStream(AsyncIterator[Event]):
    """Events in order of arrival, :class:`Done` last; nothing is sent before the first one is asked for.

    Leaving the iteration early cancels the call on the server: use ``async with``, or call :meth:`aclose`.
    """

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self._events = events

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def aclose(self) -> None:
        """Cancel the call if it still runs."""
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def collect(self) -> Answer:
        """Wait for the rest of the answer and return it whole.

        Raises
        ------
        MedvlError
            What the service refused, or why the call failed.
        """
        async with self:
            return collected([event async for event in self])


def collected(events: list[Event]) -> Answer:
    """Return the events of one stream as an answer.

    Raises
    ------
    InternalError
        When the stream ended without :class:`Done`.
    """
    if not events or not isinstance(done := events[-1], Done):
        raise InternalError("The server ended its answer without closing it: repeat the request.")
    return Answer(
        text=done.text,
        masks=tuple(event for event in events if isinstance(event, Mask)),
        previews=tuple(event for event in events if isinstance(event, SlicePreview)),
        done=done,
    )
