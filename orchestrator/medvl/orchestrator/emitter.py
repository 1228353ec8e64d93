"""The way out of a stream: one event at a time, whichever task it comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable

from medvl.wire.v1 import medvl_pb2 as pb

Write = Callable[[pb.Event], Awaitable[None]]


class Emitter:
    """Serialises the events of concurrent tasks; a slow reader slows the tasks down, nothing piles up.

    Parameters
    ----------
    write
        Sends one event to the caller; never called twice at once.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._lock = asyncio.Lock()
        self._steps: dict[tuple[pb.Stage, Hashable], tuple[int, int]] = {}

    async def emit(self, event: pb.Event) -> None:
        """Send an event after those that wait already."""
        async with self._lock:
            await self._write(event)

    async def progress(self, stage: pb.Stage, part: Hashable, done: int, total: int) -> None:
        """Send how far a stage is, added up over the parts of it that run side by side."""
        self._steps[stage, part] = (done, total)
        steps = [s for (of, _), s in self._steps.items() if of == stage]
        await self.emit(
            pb.Event(progress=pb.Progress(stage=stage, done=sum(d for d, _ in steps), total=sum(t for _, t in steps)))
        )
