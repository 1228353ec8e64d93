"""Admission: a bounded number of requests at work, a bounded number waiting, and an early no to the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from medvl.contracts.errors import Overloaded

_SMOOTHING = 0.2
"""Weight of the newest duration in the running mean."""
_MIN_RETRY_S = 0.1


class Admission:
    """Gate in front of one kind of work; first come, first served.

    Parameters
    ----------
    max_running
        Requests at work at once.
    max_waiting
        Requests that may wait; 0 refuses whatever cannot start at once.
    """

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._slots = asyncio.Semaphore(max_running)
        self._admitted = 0
        self._mean_s = 1.0

    @property
    def admitted(self) -> int:
        """Requests at work and waiting."""
        return self._admitted

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """Hold a slot for the length of a ``with`` block, once one is free.

        Raises
        ------
        Overloaded
            At once, when as many requests wait as may; ``retry_after_s`` estimates when a place will be free.
        """
        if self._admitted >= self._max_running + self._max_waiting:
            raise Overloaded(
                "The server is at work on as much as it takes: try again later.", retry_after_s=self._retry_after_s()
            )
        self._admitted += 1
        try:
            async with self._slots:
                start_s = _now_s()
                yield
                self._mean_s += _SMOOTHING * (_now_s() - start_s - self._mean_s)
        finally:
            self._admitted -= 1

    def _retry_after_s(self) -> float:
        """Return when the queue will have moved by one place, had every request the mean duration."""
        return max(_MIN_RETRY_S, self._mean_s / self._max_running)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
